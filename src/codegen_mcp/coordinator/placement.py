"""Where a new or restored session goes: the best of three, and the worker has the last word.

What a coordinator knows of loads is old by the time it is used. Whoever takes "the emptiest" sends
every session of every coordinator to the same worker until the next heartbeats; the best of three
random candidates, counted at once as taken, spreads them, and a worker that is full after all
refuses, which costs one more try and no session.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.worker_view import Worker
from codegen_mcp.core.errors import Full, NotFound, Unavailable, WorkerError

T = TypeVar("T")

CANDIDATES = 3
"""Drawn for each try (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001:
two are exponentially better than one; a third makes up for stale loads)."""

TRIES = 6
"""Workers that are asked for one session before it is refused."""

RETRY_S = 2.0
"""Hint when all were full: after the next heartbeats more is known."""


class Refused(Exception):
    """A worker would not make the session, and nothing of it was made there."""

    def __init__(self, error: WorkerError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a session needs of its worker."""

    worker_id: str = ""
    """This one and no other; empty: any."""
    language: str = ""
    """For example ``python`` or ``python3.12``; empty: any."""
    tools: frozenset[str] = frozenset()
    store_id: str | None = None
    """The store that has the checkpoint to restore; None: there is none to read."""
    avoid: frozenset[Owner] = frozenset()
    """Starts that were tried already."""


@dataclass(slots=True)
class Placement:
    """Chooses among the workers that ``here`` lists at that moment."""

    here: Callable[[], Sequence[Worker]]
    rng: random.Random = field(default_factory=random.SystemRandom)

    def candidates(self, wanted: Wanted) -> list[Worker]:
        """Every worker that may be asked, full or not."""
        return [worker for worker in self.here() if _fits(worker, wanted)]

    async def place(self, wanted: Wanted, make: Callable[[Worker], Awaitable[T]]) -> T:
        """Ask one worker after the other, each counted as fuller by one while it is asked.

        Args:
            wanted: What may be asked at all.
            make: Makes the session on a worker. ``Refused`` means: ask another one; every other
                error ends the search and is raised, because it may have been made.

        Raises:
            Full: Those that were asked have no room (with retry_after_s).
            NotFound: There is no worker ``wanted.worker_id``.
            Unavailable: No worker fits at all (reason NO_WORKER).
            WorkerError: Of the worker ``wanted.worker_id``, or of ``make``.
        """
        asked: list[Worker] = []
        refusal: Refused | None = None
        while len(asked) < TRIES:
            worker = self._best([one for one in self.candidates(wanted) if one not in asked])
            if worker is None:
                break
            asked.append(worker)
            with worker.reserve() as reservation:
                try:
                    made = await make(worker)
                except Refused as error:
                    worker.refused()
                    refusal = error
                else:
                    reservation.take()
                    return made
        if refusal is None:
            raise _nobody(wanted)
        if wanted.worker_id:
            raise refusal.error
        raise Full(
            f"no worker has room for another session ({len(asked)} were asked); try again later",
            retry_after_s=refusal.error.retry_after_s or RETRY_S,
        ) from refusal.error

    def _best(self, workers: list[Worker]) -> Worker | None:
        pool = [worker for worker in workers if worker.fullness < 1] or workers
        if not pool:
            return None
        drawn = self.rng.sample(pool, min(CANDIDATES, len(pool)))
        return min(drawn, key=lambda worker: worker.fullness)


def _fits(worker: Worker, wanted: Wanted) -> bool:
    facts = worker.registration
    return (
        worker.link is not None
        and not worker.draining
        and worker.owner not in wanted.avoid
        and wanted.worker_id in ("", worker.worker_id)
        and (not wanted.language or not facts.languages or wanted.language in facts.languages)
        and (not facts.tools or wanted.tools <= facts.tools)
        and (wanted.store_id is None or wanted.store_id == facts.store_id != "")
    )


def _nobody(wanted: Wanted) -> WorkerError:
    if wanted.worker_id:
        return NotFound(
            f"there is no worker {wanted.worker_id!r} that takes this session now; name one that "
            "is registered and does not drain, or none"
        )
    needs = ", ".join(
        f"{name} {value!r}"
        for name, value in (
            ("language", wanted.language or None),
            ("tools", sorted(wanted.tools) or None),
            ("checkpoint store", wanted.store_id),
        )
        if value is not None
    )
    return Unavailable(
        "no worker that takes sessions is registered" + (f" with {needs}" if needs else ""),
        reason="NO_WORKER",
        retry_after_s=RETRY_S,
    )
