"""Which kind of volume a host gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Unavailable
from codegen_mcp.core.limits import GIB
from codegen_mcp.sandbox.base import Enforcement
from codegen_mcp.sandbox.volumes.registry import KINDS, Volumes, choose, probe
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.testing.kernel_objects import nothing_left


@pytest.fixture
def config(tmp_path: Path) -> VolumeConfig:
    return VolumeConfig(state_directory=tmp_path, reserve_bytes=0)


async def test_every_kind_is_tried_and_a_missing_one_says_why_and_how_to_get_it(
    config: VolumeConfig, tmp_path: Path
) -> None:
    with nothing_left(tmp_path):
        found = await probe(config)
    assert [result.name for result in found] == list(KINDS)
    for result in found:
        assert result.available == (result.reason == "")
        assert bool(result.fix) == bool(result.reason)
    assert list(tmp_path.iterdir()) == []


async def test_auto_takes_the_strongest_that_can_be_had(config: VolumeConfig) -> None:
    volumes, found = await choose("auto", config)
    available = [result.name for result in found if result.available]
    assert volumes.name == next(name for name in available if KINDS[name].automatic)
    if os.geteuid() != 0:
        assert (volumes.name, volumes.enforcement) == ("plain", Enforcement.WORKER)


async def test_plain_can_be_had_everywhere(config: VolumeConfig) -> None:
    volumes, _ = await choose("plain", config)
    assert volumes.enforcement is Enforcement.WORKER
    assert volumes.free_bytes() > 0


async def test_an_unknown_kind_is_refused_with_those_there_are(config: VolumeConfig) -> None:
    with pytest.raises(Unavailable, match="loop, reflink, project, overlay, tmpfs, plain"):
        await choose("zfs", config)


async def test_one_that_cannot_be_had_is_refused_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    config = VolumeConfig(state_directory=tmp_path)
    with pytest.raises(Unavailable, match="mounting needs root; run the worker as root"):
        await choose("loop", config)


def test_auto_never_takes_one_that_ends_with_the_worker() -> None:
    assert {name for name, kind in KINDS.items() if not kind.automatic} == {"overlay", "tmpfs"}


def test_only_overcommit_has_something_to_warn_of(config: VolumeConfig, tmp_path: Path) -> None:
    assert Volumes("plain", config).warning == ""
    over = VolumeConfig(state_directory=tmp_path, reserve_bytes=2 * GIB, overcommit=True)
    assert "less than 2 GiB" in Volumes("plain", over).warning
