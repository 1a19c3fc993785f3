from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Unavailable
from codegen_mcp.telemetry.audit import AuditLog
from codegen_mcp.telemetry.audit_config import AuditConfig
from codegen_mcp.telemetry.audit_files import list_files, opened
from codegen_mcp.telemetry.audit_verify import verify
from codegen_mcp.testing.small_host import fill, small_host

KILLS = 20 if os.environ.get("CODEGEN_TEST_SOAK") else 4


def killed_keeper(directory: Path, acknowledged: int) -> list[str]:
    """Run one, kill it in the middle of its work; returns what it had acknowledged."""
    command = [sys.executable, "-m", "codegen_mcp.testing.audit_process", str(directory), "65536"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        try:
            lines = [keeper.stdout.readline() for _ in range(acknowledged)]
        finally:
            keeper.send_signal(signal.SIGKILL)
        lines += keeper.stdout.readlines()
    # The last line may be half printed.
    return [line.strip() for line in lines if line.endswith("\n")]


def ended(directory: Path) -> set[str]:
    found: set[str] = set()
    for file in list_files(directory):
        with opened(file) as stream:
            for line in stream:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if record.get("kind") == "end":
                    found.add(record["call"])
    return found


@pytest.mark.soak
def test_nothing_that_was_recorded_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    acknowledged: set[str] = set()
    for kill in range(KILLS):
        acknowledged.update(killed_keeper(tmp_path, 300 + 137 * kill))
        found = verify(tmp_path)
        assert found.sound, found.problems
        assert acknowledged <= ended(tmp_path)
    assert len(list_files(tmp_path)) > 2
    assert found.lost_calls + len(found.open_calls) <= 8 * KILLS * 2


async def test_a_full_disk_stops_calls_and_not_the_log(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a small file system")
    with small_host(tmp_path, 4 * 1024 * 1024) as small:
        directory = small / "audit"
        async with AuditLog(AuditConfig(directory=directory)) as log:
            await log.record({"kind": "call", "call": "before", "text": "x" * 4000})
            filler = await asyncio.to_thread(fill, small)

            async def until_refused() -> None:
                while True:  # the file's last block has room for some
                    await log.record({"kind": "call", "call": "refused", "text": "x" * 4000})

            with pytest.raises(Unavailable):
                await until_refused()
            # Its outcome is written once there is room, before any other call.
            await log.record({"kind": "end", "call": "before", "text": "x" * 4000}, keep=True)
            with pytest.raises(Unavailable):
                await log.record({"kind": "call", "call": "refused", "text": "x" * 4000})
            assert (await asyncio.to_thread(verify, directory)).sound
            await asyncio.to_thread(filler.unlink)
            async with asyncio.timeout(10):
                while log.failing:
                    await asyncio.sleep(0.02)
            await log.record({"kind": "call", "call": "after"})
        found = verify(directory, [log.published])
        assert found.sound
        assert "before" in ended(directory)
        assert log.missed == 0
