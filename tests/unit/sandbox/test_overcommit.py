"""Whom an overcommitted host that runs low stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen_mcp.core.limits import MIB
from codegen_mcp.sandbox.volumes import overcommit
from codegen_mcp.sandbox.volumes.overcommit import HostRoom, Squeeze
from codegen_mcp.sandbox.volumes.space import VolumeConfig

RESERVE = 100 * MIB


class Taken:
    def __init__(self) -> None:
        self.late_bytes = 0

    def pending_bytes(self) -> int:
        return self.late_bytes


class Host:
    """Free space that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1000 * MIB
        monkeypatch.setattr(overcommit, "free_on", lambda _: self.free)
        monkeypatch.setattr(overcommit, "FRESH_S", 0.0)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def squeeze(directory: Path, volume: Taken, *, lavish: bool = True) -> Squeeze:
    config = VolumeConfig(state_directory=directory, reserve_bytes=RESERVE, overcommit=lavish)
    return Squeeze(config, HostRoom(config), volume)


def test_those_that_grow_below_the_reserve_are_stopped_and_the_others_go_on(
    host: Host, tmp_path: Path
) -> None:
    reader, writer = (squeeze(tmp_path, Taken()) for _ in range(2))
    assert reader.look(10 * MIB) == (False, False)
    assert writer.look(10 * MIB) == (False, False)
    host.free = RESERVE - MIB
    assert reader.look(10 * MIB) == (True, False)
    assert writer.look(11 * MIB) == (True, True)


def test_below_half_of_the_reserve_all_are_stopped(host: Host, tmp_path: Path) -> None:
    reader = squeeze(tmp_path, Taken())
    reader.look(10 * MIB)
    host.free = RESERVE // 2 - MIB
    assert reader.look(10 * MIB) == (True, True)


def test_what_is_written_late_counts_as_taken(host: Host, tmp_path: Path) -> None:
    volume = Taken()
    writer = squeeze(tmp_path, volume)
    writer.look(0)
    volume.late_bytes = 950 * MIB
    assert writer.look(950 * MIB) == (True, True)


def test_one_that_was_full_of_files_before_the_host_ran_low_is_no_writer(
    host: Host, tmp_path: Path
) -> None:
    host.free = RESERVE - MIB
    adopted = squeeze(tmp_path, Taken())
    assert adopted.look(500 * MIB) == (True, False)
    assert adopted.look(501 * MIB) == (True, True)


def test_where_nothing_is_overcommitted_nobody_is_stopped(host: Host, tmp_path: Path) -> None:
    host.free = 0
    assert squeeze(tmp_path, Taken(), lavish=False).look(10 * MIB) == (False, False)
