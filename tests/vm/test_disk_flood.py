"""Sessions with project quotas fill an overcommitted host at once: nobody else is hurt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codegen_mcp.core.limits import MIB
from codegen_mcp.testing.disk_flood import Flood, flood
from codegen_mcp.testing.volume_ground import ground_directory, grounds
from codegen_mcp.testing.worker import log_of


@pytest.mark.parametrize("where", grounds("project"))
async def test_sessions_that_fill_an_overcommitted_host_hurt_nobody(
    where: str, tmp_path: Path
) -> None:
    with ground_directory(where, tmp_path) as directory:
        os.chmod(directory, 0o711)
        log_of(directory / "state").symlink_to(tmp_path / "worker.log")
        size = Flood(volume="project", sessions=5, quota_bytes=160 * MIB, reserve_bytes=192 * MIB)
        seen = await flood(directory / "state", size)
        assert {ran.ended_by for ran in seen.fills} == {"disk"}, seen.fills
        assert seen.least_free_bytes > 0
        assert seen.neighbour_errors == []
        assert all(ran.ok for ran in seen.witness), seen.witness
