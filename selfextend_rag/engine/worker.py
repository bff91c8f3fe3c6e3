"""The one owner of a model's work: a queue, and a thread that works through it in order.

The thread begins with the first job and ends when none is left, so an idle model has none. Callers
wait for the outcome of a job in their own thread or event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import cache
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from selfextend_rag.engine.run import Cancelled, is_cancelled
from selfextend_rag.model import ModelLock, lock_of

T = TypeVar("T")
_V = TypeVar("_V")

_SECONDS_BETWEEN_LOOKS = 0.1


class Job(Generic[T]):
    """Work for a model, queued at once, and its outcome.

    Args:
        worker: whose queue it joins.
        work: what to do; it is given a function that says whether to stop, and then ends early.
        cancelled: the caller's own way to stop it.
    """

    def __init__(
        self,
        worker: ModelWorker,
        work: Callable[[Callable[[], bool]], T],
        cancelled: Cancelled = None,
    ) -> None:
        self.outcome: Future[T] = Future()
        self.outcome.set_running_or_notify_cancel()  # one that waits can't cancel it for others
        self.stopped = threading.Event()
        self._worker = worker
        self._work: Callable[[Callable[[], bool]], T] | None = work
        self._asked = is_cancelled(cancelled)
        self._foreign = cancelled is not None
        self._begun = False
        worker.submit(self)

    def is_cancelled(self) -> bool:
        """Return whether the work is to end."""
        return self.stopped.is_set() or self._asked()

    def run(self) -> None:
        """Do the work, in this thread."""
        self._begun = True
        work, self._work = self._work, None
        assert work is not None
        try:
            outcome = work(self.is_cancelled)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(outcome)

    def stop(self) -> None:
        """End the work between two chunks or tokens; at once if it has not begun."""
        self.stopped.set()
        if self._worker.withdraw(self):
            self.run()  # the model does not run: it is cancelled

    def close(self) -> None:
        """Stop, and wait until the model is free of it."""
        self.stop()
        if not self._worker.is_current():
            wait([self.outcome])

    def result(self) -> T:
        """Return what the work returned, or raise what it raised; see ``wait_for``."""
        try:
            return self.wait_for(self.outcome)
        except BaseException:
            self.stop()  # of no effect if it has ended
            raise

    async def aresult(self) -> T:
        """Do as ``result`` with the event loop free; a cancelled task stops the work."""
        return await self.await_for(self.outcome)

    def wait_for(self, future: Future[_V]) -> _V:
        """Return what a future brings that this job completes.

        Raises:
            RuntimeError: the job can't run before this thread continues.
        """
        while True:
            if not future.done():
                self._worker.refuse_wait()
            try:
                # The caller's event or function can't wake this thread while the job is queued.
                return future.result(self._patience())
            except TimeoutError:
                if future.done():
                    raise
                self._withdraw_if_cancelled()

    async def await_for(self, future: Future[_V]) -> _V:
        """Do as ``wait_for`` with the event loop free; a cancelled task stops the work."""
        wrapped = asyncio.wrap_future(future)
        try:
            while (patience := self._patience()) is not None:
                if (await asyncio.wait({wrapped}, timeout=patience))[0]:
                    break
                self._withdraw_if_cancelled()
            return await wrapped
        except asyncio.CancelledError:
            self.stop()
            raise

    def _patience(self) -> float | None:
        return None if self._begun or not self._foreign else _SECONDS_BETWEEN_LOOKS

    def _withdraw_if_cancelled(self) -> None:
        if not self._begun and self._asked():
            self.stop()


class ModelWorker:
    """Runs jobs on one model in the order in which they came.

    Args:
        lock: the model's; a thread that holds it can't wait for a job.
    """

    def __init__(self, lock: ModelLock) -> None:
        self._lock = lock
        self._guard = threading.Lock()
        self._queue: deque[Job[Any]] = deque()
        self._current: Job[Any] | None = None
        self._thread: threading.Thread | None = None

    def submit(self, job: Job[T]) -> None:
        """Put a job at the end of the queue."""
        _stop_all_at_exit()
        with self._guard:
            self._queue.append(job)
            if self._thread is None:
                # A daemon, or work that nobody waits for would keep the program from ending; at
                # exit it is stopped instead, because torch must not be torn down under it.
                self._thread = threading.Thread(
                    target=self._run, name="selfextend-rag", daemon=True
                )
                _busy.add(self)
                self._thread.start()

    def withdraw(self, job: Job[T]) -> bool:
        """Take a job out of the queue; False if it is not there, because it has begun."""
        with self._guard:
            if job not in self._queue:
                return False
            self._queue.remove(job)
            return True

    def is_current(self) -> bool:
        """Return whether this is the worker's thread."""
        return threading.current_thread() is self._thread

    def refuse_wait(self) -> None:
        """Refuse to wait for a job that can't run before this thread continues.

        Raises:
            RuntimeError: this thread has an unfinished generation, or is in a callback of a job.
        """
        self._lock.refuse_holder()
        if self.is_current():
            raise RuntimeError(
                "a callback of a run can't wait for another run on the same model; start it once "
                "this one has ended"
            )

    def stop(self) -> None:
        """End all work, at once or between two chunks or tokens, and wait for the thread."""
        with self._guard:
            thread, queued, current = self._thread, list(self._queue), self._current
            self._queue.clear()
        for job in queued:
            job.stopped.set()
        if current is not None:
            current.stopped.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._guard:
                if not self._queue:
                    self._thread = self._current = None
                    _busy.discard(self)
                    return
                job = self._current = self._queue.popleft()
            job.run()
            del job


_workers: WeakKeyDictionary[nn.Module, ModelWorker] = WeakKeyDictionary()
_workers_guard = threading.Lock()
_busy: WeakSet[ModelWorker] = WeakSet()


def worker_of(model: nn.Module) -> ModelWorker:
    """Return the worker that all calls on this instance share."""
    with _workers_guard:
        if model not in _workers:
            _workers[model] = ModelWorker(lock_of(model))
        return _workers[model]


@cache
def _stop_all_at_exit() -> None:
    def stop_all() -> None:
        for worker in tuple(_busy):
            worker.stop()

    atexit.register(stop_all)


async def in_thread(work: Callable[[], T], cancelled: threading.Event | None = None) -> T:
    """Run work that waits for a model in a thread of its own, with the event loop free.

    Not in the loop's pool: it may take minutes, and a few such calls would fill the pool.

    Args:
        work: what to do; what it raises is raised here.
        cancelled: set when the task that waits is cancelled; the thread is not waited for then.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised in the task that waits
            outcome.set_exception(error)

    threading.Thread(target=run, name="selfextend-rag-call").start()
    try:
        return await asyncio.wrap_future(outcome)
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled.set()
        raise
