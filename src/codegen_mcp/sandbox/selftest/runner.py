"""Runs attacks against a backend and judges what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.limits import RunLimits
from codegen_mcp.core.task import Command, EndedBy, Outcome, PythonCode, Stream
from codegen_mcp.sandbox import landlock
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import IsolationLevel, SandboxBackend
from codegen_mcp.sandbox.selftest.attack import Attack, Result, Verdict
from codegen_mcp.sandbox.selftest.backend_gaps import BACKEND_GAPS
from codegen_mcp.sandbox.selftest.bed import LIMITS, Bed, Place
from codegen_mcp.sandbox.selftest.decoys import Decoys
from codegen_mcp.sandbox.selftest.together import can_share, held_in, shared_program
from codegen_mcp.sandbox.selftest.tools import environment, program

_KEPT = 64 * 1024
_NEIGHBOUR = """
import os, time
with open("secret.txt", "w") as f:
    f.write("private")
print("up", flush=True)
time.sleep(3600)
"""
SHARED_USER = "shared-user"
"""All sessions run as the worker's own user, without a namespace."""
NO_SCOPES = "no-scopes"
"""Landlock here covers neither signals nor abstract sockets."""
_PROCESS_LEVELS = (IsolationLevel.PROCESS_HARDENED, IsolationLevel.PROCESS_BARE)


class _Output:
    """Keeps the first bytes of each stream."""

    def __init__(self) -> None:
        self.streams: dict[Stream, bytes] = {Stream.STDOUT: b"", Stream.STDERR: b""}
        self.begun = asyncio.Event()

    async def write(self, stream: Stream, data: bytes) -> None:
        self.streams[stream] = (self.streams[stream] + data)[:_KEPT]
        self.begun.set()

    def omit(self, stream: Stream, count: int) -> None:
        pass

    def last_words(self) -> str:
        """The attack's own verdict, else what it died of."""
        text = self.streams[Stream.STDOUT].decode(errors="replace")
        for line in reversed(text.splitlines()):
            if line.startswith(("HELD", "BROKEN")):
                return line
        errors = self.streams[Stream.STDERR].decode(errors="replace").strip().splitlines()
        return "no verdict: " + (errors[-1] if errors else text[-200:].strip() or "silence")


def known_gaps(attack: Attack, weaknesses: frozenset[str]) -> list[str]:
    """Return why an attack gets through where these weaknesses are."""
    found = [attack.gaps[name] for name in sorted(weaknesses & set(attack.gaps))]
    for level, gaps in BACKEND_GAPS.items():
        if level in weaknesses and attack.name in gaps:
            found.append(gaps[attack.name])
    return found


def conditions(config: BackendConfig, level: IsolationLevel) -> frozenset[str]:
    """Return what is known to be weaker here; an attack's ``gaps`` name these."""
    found = {level.value}
    controllers = config.cgroups.controllers if config.cgroups is not None else frozenset()
    found |= {f"no-{name}-group" for name in ("memory", "pids", "cpu") if name not in controllers}
    if config.volumes is None:
        found.add("no-disk-limit")
    if level in _PROCESS_LEVELS and config.identity is None:
        found.add(SHARED_USER)
    if level is IsolationLevel.PROCESS_HARDENED and landlock.abi() < landlock.SIGNAL_SCOPE:
        found.add(NO_SCOPES)
    return frozenset(found)


class Campaign:
    """One backend under attack.

    Args:
        backend: Boots the sandboxes.
        config: Facts of the worker.
        level: What the backend says it is.
    """

    def __init__(
        self, backend: SandboxBackend, config: BackendConfig, level: IsolationLevel
    ) -> None:
        self._backend = backend
        self._config = config
        self._conditions = conditions(config, level)

    async def run(
        self, attacks: Sequence[Attack], *, neighbour: bool = True, together: bool = False
    ) -> Sequence[Result]:
        """Run attacks one after the other in one sandbox, booted anew when it is lost.

        Args:
            attacks: In this order.
            neighbour: Have another sandbox beside it, with something to steal.
            together: Try as many as can be in one run first, each in a child of its own; those
                that are not held there run alone like the others.

        Raises:
            SandboxUnavailable: No sandbox can be booted.
        """
        results: list[Result] = []
        async with contextlib.AsyncExitStack() as stack:
            bed = await stack.enter_async_context(
                Bed(self._backend, self._config, with_volumes=neighbour)
            )
            decoys = stack.enter_context(Decoys(bed.directory))
            facts = decoys.facts() | {
                "state": str(self._config.state),
                "guest_outside": str(self._config.guest_directory),
                "template_outside": str(self._config.interpreter.template),
                "neighbour": str(bed.directory),
                "neighbour_pid": 0,
            }
            place = await bed.place(self._config.identity)
            if neighbour:
                other = await bed.place(self._config.neighbour or self._config.identity)
                facts |= await self._settle(stack, other)
            held = await self._together(place, attacks, facts) if together else {}
            for attack in attacks:
                result = held.get(attack.name) or await self._attack(place, attack, facts)
                results.append(result)
        return results

    async def _together(
        self, place: Place, attacks: Sequence[Attack], facts: dict[str, object]
    ) -> Mapping[str, Result]:
        """Those that are held in a run of many; each as long as the mean of them."""
        shared = [attack for attack in attacks if can_share(attack)]
        if not shared:
            return {}
        started = time.monotonic()
        timeout_s = max(attack.timeout_s for attack in shared)
        _, output = await self._run(place, shared_program(shared), timeout_s, facts)
        found = held_in(output.streams[Stream.STDOUT].decode(errors="replace"), shared)
        each_s = (time.monotonic() - started) / len(shared)
        return {
            attack.name: Result(
                attack=attack, verdict=Verdict.HELD, seen=found[attack.name], duration_s=each_s
            )
            for attack in shared
            if attack.name in found
        }

    async def _settle(self, stack: contextlib.AsyncExitStack, other: Place) -> dict[str, object]:
        """Start a neighbour that runs while the attacks do."""
        output = _Output()
        command = Command(
            program=PythonCode(_NEIGHBOUR.encode()),
            limits=RunLimits(timeout_s=3600, output_bytes=LIMITS.output_bytes),
        )
        running = asyncio.ensure_future(other.sandbox.run(command, output))

        async def stop() -> None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        stack.push_async_callback(stop)
        await asyncio.wait_for(output.begun.wait(), 10)
        return {
            "neighbour": str(other.spec.volume.root / "workspace"),
            "neighbour_pid": max(other.sandbox.processes(), default=0),
        }

    async def _attack(self, place: Place, attack: Attack, facts: dict[str, object]) -> Result:
        started = time.monotonic()
        held, seen = await self._judge(place, attack, facts)
        verdict = Verdict.HELD if held else Verdict.FAILED
        reasons = known_gaps(attack, self._conditions)
        if not held and reasons:
            verdict, seen = Verdict.GAP, f"{reasons[0]} ({seen})"
        if not place.sandbox.alive:
            await place.reboot()
        return Result(
            attack=attack, verdict=verdict, seen=seen, duration_s=time.monotonic() - started
        )

    async def _judge(
        self, place: Place, attack: Attack, facts: dict[str, object]
    ) -> tuple[bool, str]:
        outcome, output = await self._run(place, program(attack.code), attack.timeout_s, facts)
        words = output.last_words()
        if outcome.sandbox_lost and not attack.may_lose_guest:
            return False, "the sandbox was lost"
        if outcome.ended_by not in attack.ends_by:
            return False, f"ended by {outcome.ended_by.name}; {words}"
        if words.startswith("BROKEN"):
            return False, words.removeprefix("BROKEN ")
        if attack.then:
            return await self._judge_after(place, attack, facts, outcome, words)
        if outcome.ended_by is EndedBy.EXIT and not words.startswith("HELD"):
            return False, words
        return True, words.removeprefix("HELD ")

    async def _judge_after(
        self,
        place: Place,
        attack: Attack,
        facts: dict[str, object],
        outcome: Outcome,
        words: str,
    ) -> tuple[bool, str]:
        """Ask a second run, on a sandbox booted anew where the attack wants that."""
        if attack.reboot or outcome.sandbox_lost:
            await place.reboot()
        then = program(attack.then)
        try:
            _, output = await self._run(place, then, attack.timeout_s, facts)
        except SandboxUnavailable:  # the guest ended after the run did
            if not attack.may_lose_guest:
                return False, "the sandbox was lost"
            await place.reboot()
            _, output = await self._run(place, then, attack.timeout_s, facts)
        after = output.last_words()
        if not after.startswith("HELD"):
            return False, after
        before = words if words.startswith("HELD") else f"ended by {outcome.ended_by.name}"
        seen = after if attack.reboot else f"{before}; {after.removeprefix('HELD ')}"
        return True, seen.removeprefix("HELD ")

    async def _run(
        self, place: Place, code: bytes, timeout_s: float, facts: dict[str, object]
    ) -> tuple[Outcome, _Output]:
        output = _Output()
        command = Command(
            program=PythonCode(code, filename="attack.py"),
            limits=RunLimits(timeout_s=timeout_s, output_bytes=LIMITS.output_bytes),
            env=environment(facts),
        )
        if not place.sandbox.alive:
            await place.reboot()
        return await place.sandbox.run(command, output), output
