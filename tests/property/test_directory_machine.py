"""Directories under everything that may happen to them: ``testing/directory_machine.py``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from codegen_mcp.testing.directory_machine import DirectoryMachine
from codegen_mcp.testing.directory_rig import DirectoryRig
from codegen_mcp.testing.directory_rigs import RIGS

MANY = 50 if os.environ.get("CODEGEN_TEST_SOAK") else 1
EXAMPLES = {"memory": 60}
"""A step costs some statements: elsewhere fewer."""


@pytest.mark.soak
@pytest.mark.timeout(3600 if MANY > 1 else 120)
@pytest.mark.parametrize("directory", RIGS)
def test_what_was_acknowledged_holds_whatever_happens(directory: str) -> None:
    class Machine(DirectoryMachine):
        def make_rig(self) -> DirectoryRig:
            self.place = tempfile.TemporaryDirectory()
            return RIGS[directory](Path(self.place.name))

        def teardown(self) -> None:
            super().teardown()
            self.place.cleanup()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES.get(directory, 25) * MANY,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
