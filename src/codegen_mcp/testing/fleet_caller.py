"""Callers of a fleet that go on whatever happens, and know what they were promised."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from codegen_mcp.testing.fleet import STATED_S, Fleet
from codegen_mcp.testing.fleet_judge import in_time, unknown
from codegen_mcp.testing.fleet_witness import watched


class Caller:
    """Counts up in one session, one task after the other; each writes its name into a file.

    Attributes:
        acked: Tasks whose result came.
        open: Tasks of which it was said that nobody knows.
        repeated: Tasks that were asked for again, under their id, after an answer that said
            nothing of what they had done: these may have run on a worker that was lost, too.
        told: How often each answer came.
    """

    def __init__(self, fleet: Fleet, number: int, *, task_s: float = 0.0, **config: Any) -> None:
        """Describe it.

        Args:
            fleet: What it calls.
            number: Of this caller.
            task_s: How long each task takes, so that faults find it under way.
            config: Of its session.
        """
        self._fleet = fleet
        self._task_s = task_s
        self._number = number
        self._config = config
        self.session = ""
        self.acked: list[str] = []
        self.open: list[str] = []
        self.repeated: set[str] = set()
        self.told: Counter[str] = Counter()

    async def begin(self) -> None:
        """Make the session."""
        self.session = await self._fleet.session(**self._config)
        await self._fleet.stdout(self.session, "open('log', 'w').close()")

    async def work(self, over: asyncio.Event) -> None:
        """Until then; one task that was refused is asked for again."""
        turn = 0
        while not over.is_set():
            turn += 1
            await self._until_known(f"{self._number}-{turn}")

    async def _until_known(self, name: str) -> None:
        code = watched(
            name,
            f"time.sleep({self._task_s})\nopen('log', 'a').write('{name} ')\nprint({name!r})",
        )
        while True:
            answer = in_time(await self._fleet.run(self.session, code, f"tsk_{name}"))
            self.told[answer.reason or answer.code or "OK"] += 1
            if answer.ok and answer.stdout == f"{name}\n":
                self.acked.append(name)
                return
            if unknown(answer):
                self.open.append(name)
                return
            assert answer.code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"}, answer
            if not answer.reason:
                self.repeated.add(name)
            await asyncio.sleep(0.1)

    async def check(self) -> None:
        """Everything that was acknowledged is there, in order and once."""
        log = (await self._fleet.stdout(self.session, "print(open('log').read())")).split()
        assert [name for name in log if name not in self.open] == self.acked, self.told


async def all_get_on(fleet: Fleet, callers: list[Caller], *, by: int = 1) -> None:
    """Wait until each caller has so many more results."""
    before = [len(caller.acked) for caller in callers]

    async def done() -> bool:
        return all(len(caller.acked) >= n + by for caller, n in zip(callers, before, strict=True))

    await fleet.until(done, "work of all callers", within_s=4 * STATED_S)
