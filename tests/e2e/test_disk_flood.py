"""Sessions that are promised more disk than there is fill it all at once: nobody else is hurt."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from codegen_mcp.core.limits import MIB
from codegen_mcp.testing.disk_flood import Flood, flood
from codegen_mcp.testing.small_host import small_host
from codegen_mcp.testing.worker import log_of, state_directory

SOAK = os.environ.get("CODEGEN_TEST_SOAK") == "1"
SESSIONS = 100 if SOAK else 4
QUOTA = 128 * MIB
HOST = 4096 * MIB if SOAK else 448 * MIB
RESERVE = 1024 * MIB if SOAK else 224 * MIB

soak = pytest.mark.skipif(not SOAK, reason="a long run; the other kind is the sample")

pytestmark = pytest.mark.usefixtures("kernel_limits")


@pytest.fixture
async def host() -> AsyncIterator[Path]:
    async with state_directory() as state:
        with small_host(state.parent, HOST) as root:
            root.chmod(0o711)
            yield root


@pytest.mark.parametrize("volume", ["loop", pytest.param("plain", marks=[pytest.mark.soak, soak])])
async def test_sessions_that_fill_an_overcommitted_host_hurt_nobody(
    host: Path, volume: str
) -> None:
    state = host / "state"
    log_of(state).symlink_to(host.with_name("worker.log"))
    size = Flood(volume=volume, sessions=SESSIONS, quota_bytes=QUOTA, reserve_bytes=RESERVE)
    seen = await flood(state, size)
    assert {ran.ended_by for ran in seen.fills} == {"disk"}, [ran.ended_by for ran in seen.fills]
    assert seen.least_free_bytes > 0
    assert seen.neighbour_errors == []
    assert seen.neighbour_writes > 10
    if volume == "loop":  # a watched directory is counted too slowly to tell writers from readers
        assert all(ran.ok for ran in seen.witness), seen.witness
