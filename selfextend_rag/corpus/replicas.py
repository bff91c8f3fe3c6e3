"""Replicas of a model in processes of Ray, on this machine or a cluster; none is trusted to live.

The process that asks holds every unit until its rows are back. A replica that dies is replaced, and
the unit that it was at goes to another one.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfextend_rag.corpus.answering import (
    Asked,
    ModelSpec,
    ReplicaDied,
    Unit,
    answer_unit,
    failed_row,
)
from selfextend_rag.corpus.rows import CorpusRow
from selfextend_rag.errors import in_short
from selfextend_rag.llm.base import BaseLLM

_MOST_DEATHS = 3  # of replicas at one unit, which is then what kills them


class _Replica:
    """A model in a process of its own."""

    def __init__(self, model: ModelSpec) -> None:
        self._llm: BaseLLM = model.open()

    def answer(self, unit: Unit, asked: Asked) -> list[CorpusRow]:
        """Return the rows of a unit."""
        return answer_unit(self._llm, unit, asked)

    def ready(self) -> int:
        """Return the number of the process, once the model is open."""
        return os.getpid()


def answers_of_replicas(
    model: ModelSpec,
    units: Sequence[Unit],
    asked: Asked,
    replicas: int,
    replica_options: Mapping[str, Any],
) -> Iterator[list[CorpusRow]]:
    """Yield the rows of units as replicas answer them.

    Ray is started on this machine, and ended again, unless it runs already.

    Raises:
        ImportError: Ray is not installed.
        ReplicaDied: replicas can't be started.
    """
    ray = _ray()
    replicas = min(replicas, len(units))
    started = not ray.is_initialized()
    options = {"num_cpus": 1, **replica_options}
    if started:
        _start(ray, replicas * options["num_cpus"])
    try:
        make = ray.remote(**options)(_Replica)
        yield from _Fleet(ray, make, model, asked).answers(units, replicas)
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, cpus: float) -> None:
    """Start Ray on this machine, or join the cluster of ``RAY_ADDRESS``; it reports to nobody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # replicas are the work, and not behind it
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    # as many as the replicas ask for: with fewer, some of them would wait for ever
    ray.init(num_cpus=max(1, math.ceil(cpus)), include_dashboard=False, log_to_driver=False)


class _Fleet:
    """Replicas at work, each with one unit at a time, so that it is known what one died of."""

    def __init__(self, ray: Any, make: Any, model: ModelSpec, asked: Asked) -> None:
        self._ray, self._make = ray, make
        self._model, self._asked = ray.put(model), ray.put(asked)
        self._running: dict[Any, tuple[int, Any]] = {}  # by result: the unit's place, the replica
        self._deaths: dict[int, int] = {}

    def answers(self, units: Sequence[Unit], replicas: int) -> Iterator[list[CorpusRow]]:
        """Yield rows of units as they come."""
        waiting = deque(range(len(units)))
        for replica in self._made(replicas):
            self._send(replica, waiting, units)
        while self._running:
            (ready,), _ = self._ray.wait(list(self._running), num_returns=1)
            place, replica = self._running.pop(ready)
            try:
                rows = self._ray.get(ready)
            except self._ray.exceptions.RayActorError as error:
                rows = self._after_death(units[place], place, error)
                if not rows:
                    waiting.append(place)
                (replica,) = self._made(1)
            if rows:
                yield rows
            self._send(replica, waiting, units)

    def _made(self, replicas: int) -> list[Any]:
        """Return new replicas whose model is open."""
        made = [self._make.remote(self._model) for _ in range(replicas)]
        try:
            self._ray.get([replica.ready.remote() for replica in made])
        except self._ray.exceptions.RayError as error:
            raise ReplicaDied(f"a replica could not be started: {in_short(error)}") from error
        return made

    def _send(self, replica: Any, waiting: deque[int], units: Sequence[Unit]) -> None:
        if waiting:
            place = waiting.popleft()
            self._running[replica.answer.remote(units[place], self._asked)] = place, replica

    def _after_death(self, unit: Unit, place: int, error: Exception) -> list[CorpusRow]:
        """Return the rows of a unit at which too many replicas have died; none to try it again."""
        self._deaths[place] = self._deaths.get(place, 0) + 1
        if self._deaths[place] < _MOST_DEATHS:
            return []
        died = ReplicaDied(f"{_MOST_DEATHS} replicas ended at it: {in_short(error)}")
        return [failed_row(unit, question, died) for question in unit.keys]


def _ray() -> Any:
    """Return Ray, imported when replicas are first asked for.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            'replicas run in processes of Ray; pip install "selfextend-rag[ray]"'
        ) from error
    return ray
