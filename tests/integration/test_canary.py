"""Real sandboxes that wait, reached from outside: what was touched is not handed out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from codegen_mcp.bootstrap import Engine, open_engine
from codegen_mcp.core.limits import MIB
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.engine import canary
from codegen_mcp.engine.hooks import NoHooks
from codegen_mcp.engine.slot import Slot
from codegen_mcp.settings import Settings
from codegen_mcp.testing.memory_pool import until


class Told(NoHooks):
    def __init__(self) -> None:
        self.changes: list[str] = []

    def pool_tampered(self, *, change: str) -> None:
        self.changes.append(change)


@pytest.fixture
def state() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="codegen-canary-", dir="/var/tmp"))
    base.chmod(0o711)
    try:
        yield base / "state"
    finally:
        shutil.rmtree(base)


@asynccontextmanager
async def engine(state: Path, told: Told) -> AsyncIterator[Engine]:
    settings = Settings.model_validate(
        {
            "base_workspace": state,
            "pool_size": 1,
            "disk_bytes": 32 * MIB,
            "memory_bytes": 128 * MIB,
            "disk_reserve_bytes": 0,
            "require_isolation": "process-hardened",
        }
    )
    async with open_engine(settings, told, keep_sessions=False) as opened:
        await until(lambda: opened.sessions.warm.depth == 1)
        yield opened


async def test_an_untouched_sandbox_is_handed_out_and_its_files_are_looked_at(
    state: Path,
) -> None:
    told = Told()
    async with engine(state, told) as opened:
        slot = opened.sessions.warm._ready[0]
        assert canary.examined(slot) is None
        assert slot.pristine is not None
        assert 5 < len(slot.pristine.names) < 100
        assert len(slot.pristine.processes) >= 2
        view = await opened.sessions.create(SessionConfig())
        assert opened.sessions.session(view.session_id)._slot is slot
        assert told.changes == []


def write_as_its_user(slot: Slot) -> None:
    """What a process left over under the session's host user could do."""
    user = os.geteuid() if slot.identity is None else slot.identity.uid
    command = ["/usr/bin/setpriv", f"--reuid={user}", "--clear-groups", "--"]
    target = slot.volume.root / "venv" / "sitecustomize.pth"
    subprocess.run(
        [*(command if os.geteuid() == 0 else []), "/usr/bin/touch", str(target)], check=True
    )


def stop_its_guest(slot: Slot) -> None:
    assert slot.sandbox is not None
    for pid in slot.sandbox.processes():
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize(
    ("tamper", "change"), [(write_as_its_user, "files"), (stop_its_guest, "stopped")]
)
async def test_a_touched_sandbox_is_thrown_away_and_counted(
    state: Path, tamper: Callable[[Slot], None], change: str
) -> None:
    told = Told()
    async with engine(state, told) as opened:
        warm = opened.sessions.warm
        slot = warm._ready[0]
        tamper(slot)
        await until(lambda: canary.examined(slot) == change)
        warm._next_look = 0.0
        warm.nudge()
        await until(lambda: told.changes == [change])
        await until(lambda: warm.depth == 1 and warm._ready[0] is not slot)
        view = await opened.sessions.create(SessionConfig())
        assert opened.sessions.session(view.session_id)._slot is not slot


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to put a process into the group")
async def test_a_process_that_joined_it_is_seen_at_the_hand_out(state: Path) -> None:
    told = Told()
    async with engine(state, told) as opened:
        slot = opened.sessions.warm._ready[0]
        if slot.cgroup is None:
            pytest.skip("there are no control groups here")
        with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as stranger:
            try:
                for path in slot.cgroup.attach_files:
                    path.write_text(str(stranger.pid))
                view = await opened.sessions.create(SessionConfig())
                assert opened.sessions.session(view.session_id)._slot is not slot
                assert told.changes == ["processes"]
            finally:
                stranger.kill()
