"""Sessions with project quotas fill an overcommitted host at once: nobody else is hurt."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
from pathlib import Path

import pytest

from codegen_mcp.core.limits import KIB, MIB, ResourceLimits, RunLimits
from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox import registry
from codegen_mcp.sandbox.volumes.registry import Volumes
from codegen_mcp.sandbox.volumes.space import VolumeConfig, free_on
from codegen_mcp.testing.disk_flood import FILL
from codegen_mcp.testing.sandbox_ground import prepared_ground
from codegen_mcp.testing.sandbox_rig import Ran, Rig
from codegen_mcp.testing.volume_ground import ground_directory, grounds

SESSIONS = 5
LIMITS = ResourceLimits(
    memory_bytes=128 * MIB, disk_bytes=64 * MIB, file_size_bytes=64 * MIB, pids=48
)
FREE = 224 * MIB
"""What is left of the disk: an emulated processor fills it slowly."""
RESERVE = 96 * MIB
TIME = RunLimits(timeout_s=240, output_bytes=MIB)
LOOK = "import hashlib; print(hashlib.sha256(open('kept', 'rb').read()).hexdigest())"


@pytest.mark.parametrize("where", grounds("project"))
async def test_sessions_that_fill_an_overcommitted_host_hurt_nobody(
    where: str, tmp_path: Path
) -> None:
    with prepared_ground() as ground, ground_directory(where, tmp_path) as directory:
        os.chmod(directory, 0o711)
        with (directory / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free_on(directory) - FREE)
        with dataclasses.replace(ground, state=directory).config() as config:
            disk = VolumeConfig(state_directory=directory, reserve_bytes=RESERVE, overcommit=True)
            assert SESSIONS * LIMITS.disk_bytes > free_on(directory)
            volumes = Volumes("project", disk)
            config = dataclasses.replace(config, volumes=volumes)
            backend = registry.create("bubblewrap", config)
            async with Rig(backend, config, ground.identities, with_volumes=True) as rig:
                places = [await rig.place(LIMITS) for _ in range(SESSIONS + 1)]
                digests = []
                for place in places:
                    data = os.urandom(64 * KIB)
                    digests.append(hashlib.sha256(data).hexdigest())
                    path = place.spec.volume.root / "workspace" / "kept"
                    path.write_bytes(data)
                    path.chmod(0o644)
                *writers, reader = places
                fills = asyncio.gather(*(rig.run(place, FILL, limits=TIME) for place in writers))
                read: list[Ran] = []
                least = free_on(directory)
                while not fills.done():
                    read.append(await rig.run(reader, LOOK, limits=TIME))
                    least = min(least, free_on(directory))
                ended = [ran.end.ended_by for ran in await fills]
                assert ended == [EndedBy.DISK] * SESSIONS, ended
                assert least > 0
                assert {ran.stdout for ran in read} == {digests[-1].encode() + b"\n"}
                for place, digest in zip(places, digests, strict=True):
                    path = place.spec.volume.root / "workspace" / "kept"
                    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
