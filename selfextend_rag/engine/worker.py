"""The one owner of a model's work: a queue, and a thread that works through it in order.

The thread begins with the first job and ends when none is left, so an idle model has none. Callers
wait for the outcome of a job in their own thread or event loop.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from torch import nn

from selfextend_rag.engine.run import Cancelled, is_cancelled
from selfextend_rag.model import ModelLock, lock_of
from selfextend_rag.model.extension import never

T = TypeVar("T")
_V = TypeVar("_V")
_Work: TypeAlias = Callable[[Callable[[], bool]], T]

_SECONDS_BETWEEN_LOOKS = 0.1


class Worker(Protocol):
    """What runs jobs: the thread of a model, or several that send requests."""

    def submit(self, job: Job[Any]) -> None:
        """Put a job at the end of the queue."""

    def is_current(self) -> bool:
        """Return whether this is a thread of the worker."""

    def refuse_wait(self) -> None:
        """Refuse to wait for a job that can't run before this thread continues."""


class Job(Generic[T]):
    """Work for a model, queued at once, and its outcome.

    The work is given a function that says whether to stop, and then ends early; ``cancelled`` is
    the caller's own way to stop it.
    """

    def __init__(self, worker: Worker, work: _Work[T], cancelled: Cancelled = None) -> None:
        self.outcome: Future[T] = Future()
        self.outcome.set_running_or_notify_cancel()  # one that waits can't cancel it for others
        self.stopped = threading.Event()
        self._worker = worker
        self._guard = threading.Lock()
        self._work: _Work[T] | None = work
        self._asked = is_cancelled(cancelled)
        worker.submit(self)

    def run(self) -> None:
        """Do the work, unless another thread has begun it."""
        with self._guard:
            work, self._work = self._work, None
        if work is None:
            return
        try:
            outcome = work(lambda: self.stopped.is_set() or self._asked())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self.outcome.set_exception(error)
            # Its traceback has this frame, and what work had in memory. A frame that leads back to
            # the error would keep all that until garbage is collected.
            del self
        else:
            self.outcome.set_result(outcome)

    def stop(self) -> None:
        """End the work between two chunks or tokens; at once if it has not begun."""
        self.stopped.set()
        self.run()  # the model does not run: it is cancelled

    def close(self) -> None:
        """Stop, and wait until the model is free of it."""
        self.stop()
        if not self._worker.is_current():
            wait([self.outcome])

    def result(self) -> T:
        """Wait, and return what the work returned, or raise what it raised; see ``wait_for``."""
        try:
            return self.wait_for(self.outcome)
        except BaseException:  # raised again; nobody is left to wait, after Ctrl-C either
            self.stop()  # of no effect if it has ended
            del self  # as in run
            raise

    def wait_for(self, future: Future[_V]) -> _V:
        """Return what a future brings that this job completes.

        Raises:
            RuntimeError: the job can't run before this thread continues.
        """
        if not future.done():
            self._worker.refuse_wait()
        while self._is_looked_at() and wait([future], _SECONDS_BETWEEN_LOOKS).not_done:
            self._look()
        try:
            return future.result()
        finally:
            del self, future  # as in run

    async def await_for(self, future: Future[_V]) -> _V:
        """Do as ``wait_for`` with the event loop free; a cancelled task stops the work."""
        wrapped = asyncio.wrap_future(future)
        try:
            while self._is_looked_at():
                if (await asyncio.wait({wrapped}, timeout=_SECONDS_BETWEEN_LOOKS))[0]:
                    break
                self._look()
            return await wrapped
        except asyncio.CancelledError:
            self.stop()
            raise
        finally:
            del self, future, wrapped  # as in run

    def _is_looked_at(self) -> bool:
        """Return whether its caller may still withdraw it, by what can't wake a thread."""
        return self._work is not None and self._asked is not never

    def _look(self) -> None:
        if self._is_looked_at() and self._asked():
            self.stop()


class ModelWorker:
    """Runs jobs on one model, whose lock is given, in the order in which they came."""

    def __init__(self, lock: ModelLock) -> None:
        self._lock = lock
        self._guard = threading.Lock()
        self._jobs: deque[Job[Any]] = deque()  # the first one runs
        self._threads: list[threading.Thread] = []  # one, while there are jobs
        weakref.finalize(self, _stop_at_exit, self._jobs, self._threads)

    def submit(self, job: Job[T]) -> None:
        """Put a job at the end of the queue."""
        with self._guard:
            self._jobs.append(job)
            if not self._threads:
                # A daemon, or work that nobody waits for would keep the program from ending; at
                # exit it is stopped instead, because torch must not be torn down under it.
                thread = threading.Thread(None, self._run, "selfextend-rag", daemon=True)
                self._threads.append(thread)
                thread.start()

    def is_current(self) -> bool:
        """Return whether this is the worker's thread."""
        return threading.current_thread() in self._threads

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

    def _run(self) -> None:
        while True:
            self._jobs[0].run()
            with self._guard:
                self._jobs.popleft()
                if not self._jobs:
                    self._threads.clear()
                    return


def _stop_at_exit(jobs: deque[Job[Any]], threads: list[threading.Thread]) -> None:
    """End a worker's jobs, at once or between two chunks or tokens, and wait for its thread."""
    for job in tuple(jobs):
        job.stopped.set()
    for thread in tuple(threads):
        thread.join()


_workers: weakref.WeakKeyDictionary[nn.Module, ModelWorker] = weakref.WeakKeyDictionary()
_workers_guard = threading.Lock()


def worker_of(model: nn.Module) -> ModelWorker:
    """Return the worker that all calls on this instance share."""
    with _workers_guard:
        if model not in _workers:
            _workers[model] = ModelWorker(lock_of(model))
        return _workers[model]


async def in_thread(work: Callable[[], T], cancelled: threading.Event | None = None) -> T:
    """Run work that waits for a model in a thread of its own, with the event loop free.

    Not in the loop's pool: it may take minutes, and a few such calls would fill the pool. When the
    task that waits is cancelled, ``cancelled`` is set, and the thread is not waited for.
    """
    thread = ThreadPoolExecutor(1, "selfextend-rag-call")
    try:
        return await asyncio.wrap_future(thread.submit(work))
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled.set()
        raise
    finally:
        thread.shutdown(wait=False)
