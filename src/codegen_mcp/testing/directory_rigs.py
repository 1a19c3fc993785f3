"""Which directories the conformance suite is run on: one line for each.

A new directory has a line in ``coordinator/directory/registry.py`` and one here; the laws and the
state machine, restarts among them, then run on it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from codegen_mcp.coordinator.directory.memory import MemoryDirectory
from codegen_mcp.coordinator.directory.registry import open_directory
from codegen_mcp.testing.directory_rig import DirectoryRig


def _in_memory(place: Path) -> DirectoryRig:
    same = MemoryDirectory()
    return DirectoryRig(lambda: same)


RIGS: Mapping[str, Callable[[Path], DirectoryRig]] = {
    "memory": _in_memory,
    "sqlite": lambda place: DirectoryRig(
        lambda: open_directory(f"sqlite://{place}/directory.sqlite")
    ),
}
"""Each makes a rig of a directory that is empty; its files may lie in the given place."""
