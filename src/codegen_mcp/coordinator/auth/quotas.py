"""What a principal has used of its quotas: calls in a minute, and tasks under way.

Its sessions are counted where they are owned, in the directory. These two are this process's own:
a coordinator that starts anew begins with a full minute, and counts tasks that run on since before
only when they are joined again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import Full

REASON = "QUOTA_EXCEEDED"
TASK_RETRY_S = 1.0
"""When a task's end may be asked about again; nobody can know it."""
REMEMBERED = 10_000
"""Principals whose minute is kept; the one that called longest ago is forgotten first."""

TaskKey = tuple[str, str]
"""Session and task id: a task that is asked for twice counts once."""

_PAID: ContextVar[bool] = ContextVar("quota_paid", default=False)


@dataclass(slots=True)
class _Minute:
    """A token bucket: as many calls as a minute allows, refilled evenly."""

    left: float
    at: float


@dataclass(slots=True)
class _Tasks:
    streams: dict[TaskKey, int] = field(default_factory=dict)
    """Of each task, how many listen to it. None may: it was left, and perhaps still runs."""


class QuotaLedger:
    """Counts for all principals of this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minutes: OrderedDict[str, _Minute] = OrderedDict()
        self._tasks: dict[str, _Tasks] = {}

    @contextmanager
    def call(self, principal: Principal) -> Iterator[None]:
        """Pay for one call; whatever it makes by itself inside the block is paid for with it.

        Raises:
            Full: This minute's calls are used up; reason QUOTA_EXCEEDED, with retry_after_s.
        """
        if _PAID.get():
            yield
            return
        self._pay(principal)
        token = _PAID.set(True)
        try:
            yield
        finally:
            _PAID.reset(token)

    def pay(self, principal: Principal) -> None:
        """Pay for one call, unless it is part of one that is paid for. Raises as ``call``."""
        if not _PAID.get():
            self._pay(principal)

    def _pay(self, principal: Principal) -> None:
        bound = principal.quotas.calls_per_minute
        if not bound:
            return
        now = self._clock.monotonic()
        minute = self._minutes.get(principal.name)
        if minute is None:
            minute = self._minutes[principal.name] = _Minute(left=float(bound), at=now)
        self._minutes.move_to_end(principal.name)
        while len(self._minutes) > REMEMBERED:
            self._minutes.popitem(last=False)
        minute.left = min(float(bound), minute.left + (now - minute.at) * bound / 60)
        minute.at = now
        if minute.left < 1:
            raise exceeded(
                "calls_per_minute",
                bound,
                f"all {bound} calls of this minute are used; wait",
                retry_after_s=(1 - minute.left) * 60 / bound,
            )
        minute.left -= 1

    def tasks(self, principal: Principal) -> int:
        """How many tasks it has under way, or left without seeing their end."""
        found = self._tasks.get(principal.name)
        return 0 if found is None else len(found.streams)

    def has_room(self, principal: Principal, key: TaskKey) -> bool:
        """Whether this task may be under way too."""
        found = self._tasks.get(principal.name)
        known = found is not None and key in found.streams
        return known or self.tasks(principal) < principal.quotas.tasks

    def left_tasks(self, principal: Principal) -> list[TaskKey]:
        """Those that nobody listens to here: they may have ended."""
        found = self._tasks.get(principal.name)
        return [] if found is None else [key for key, many in found.streams.items() if not many]

    def listen(self, principal: Principal, key: TaskKey) -> None:
        """A stream of this task begins."""
        streams = self._tasks.setdefault(principal.name, _Tasks()).streams
        streams[key] = streams.get(key, 0) + 1

    def leave(self, principal: Principal, key: TaskKey) -> None:
        """A stream of it was left before the task's end."""
        found = self._tasks.get(principal.name)
        if found is not None and found.streams.get(key):
            found.streams[key] -= 1

    def ended(self, principal: Principal, key: TaskKey) -> None:
        """The task is no longer under way."""
        found = self._tasks.get(principal.name)
        if found is not None:
            found.streams.pop(key, None)
            if not found.streams:
                del self._tasks[principal.name]


def exceeded(quota: str, bound: int, words: str, *, retry_after_s: float) -> Full:
    """Return the refusal: which quota, how much it is, and when to try again."""
    return Full(
        words,
        reason=REASON,
        retry_after_s=retry_after_s,
        metadata={"quota": quota, "limit": str(bound)},
    )
