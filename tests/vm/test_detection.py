"""What a worker finds on a host whose only hierarchy is version 2."""

from __future__ import annotations

import os
from pathlib import Path

from codegen_mcp.sandbox.cgroup_detect import detect
from codegen_mcp.testing.kernel_objects import kernel_objects

TOKEN = "0123456789abcdef"


def test_every_controller_can_be_used_and_nothing_is_left() -> None:
    found = detect(TOKEN)
    assert found.driver is not None
    assert found.driver.version == 2
    assert found.driver.controllers == {"memory", "pids", "cpu", "freezer"}
    assert not found.refused
    found.driver.close()
    assert kernel_objects(Path(os.devnull), TOKEN) == []
