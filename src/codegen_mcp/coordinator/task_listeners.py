"""Who follows which task, and in which order tasks go to their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary


class TaskTurns:
    """One line for each session: who came first is sent first."""

    def __init__(self) -> None:
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, session_id: str) -> Turn:
        """A place in the session's line, not taken yet."""
        line = self._lines.get(session_id)
        if line is None:
            line = self._lines[session_id] = asyncio.Lock()
        return Turn(line)


class Turn:
    """One task's place; ``done`` lets the next one go, and may be called again."""

    def __init__(self, line: asyncio.Lock) -> None:
        self._line = line
        self._mine = False

    async def wait(self) -> None:
        """Return when those that came before were sent."""
        await self._line.acquire()
        self._mine = True

    def done(self) -> None:
        """Let the next one go."""
        if self._mine:
            self._mine = False
            self._line.release()


@dataclass(slots=True)
class _Audience:
    listeners: int = 0
    cancels: bool = False
    """As its first request said: the task ends when the last listener leaves."""
    ended: bool = False


class Audiences:
    """Counts the listeners of tasks here, where the policy of a task that loses them is kept.

    Workers are told that tasks go on without listeners: a link that breaks is no caller that left.
    """

    def __init__(self) -> None:
        self._by_task: dict[tuple[str, str], _Audience] = {}

    @contextmanager
    def listening(self, session_id: str, task_id: str, *, cancels: bool) -> Iterator[_Audience]:
        """Count a listener; ``cancels`` counts for the first one that runs the task."""
        key = (session_id, task_id)
        audience = self._by_task.get(key)
        if audience is None:
            audience = self._by_task[key] = _Audience(cancels=cancels)
        audience.listeners += 1
        try:
            yield audience
        finally:
            audience.listeners -= 1
            if not audience.listeners:
                self._by_task.pop(key, None)

    def left_alone(self, session_id: str, task_id: str) -> bool:
        """Whether nobody listens any more (ask after the last one was counted out)."""
        return (session_id, task_id) not in self._by_task
