"""How programs and files behave is the same on every backend, but for gaps that are known.

The suites run again as they are, over workers with that backend. A known gap must show: one that
is closed has to leave the list, and docs/concepts/sandbox.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pytest

from codegen_mcp.sandbox import registry
from codegen_mcp.testing.container_image import build_image, image_name
from codegen_mcp.testing.sandbox_ground import prepared_ground

ROOT = Path(__file__).resolve().parents[2]
SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
SUITES = (
    "tests/e2e/test_run_semantics.py",
    "tests/e2e/test_file_semantics.py",
    "tests/integration/test_fidelity.py",
)
SAMPLE = (
    "tests/e2e/test_run_semantics.py::test_every_call_is_a_fresh_process_in_the_workspace",
    "tests/e2e/test_run_semantics.py::test_two_megabytes_are_exact_to_the_last_byte",
)
HOST_PATHS = "the workspace has its host path: there is no mount namespace"
SHORT_WRITES = "a write(2) to the output of more than the pipe has room for is short, and says so"
GAPS: Mapping[str, Mapping[str, str]] = {
    "gvisor": {
        "test_fifty_megabytes_are_streamed_and_counted_and_the_worker_stays_small": SHORT_WRITES,
        "test_a_character_written_in_two_pieces_is_one_and_a_bad_byte_is_marked": SHORT_WRITES,
        "test_a_child_that_holds_the_output_open_does_not_hold_the_call": (
            "gVisor keeps host processes for further ones, so they are more than before"
        ),
        "test_what_is_no_regular_file_is_refused_at_once": (
            "a FIFO is in gVisor's memory alone: for the file tools there is none"
        ),
    },
    "container": {},
    "bubblewrap-noproc": {},
    "process-hardened": {
        "test_every_call_is_a_fresh_process_in_the_workspace": HOST_PATHS,
        "test_a_shell_answers_with_its_own_exit_code[/workspace-126]": HOST_PATHS,
    },
}


async def why_not(name: str) -> str:
    """Why a backend cannot be had here; empty where it can."""
    if name == "container" and (reason := build_image()):
        return reason
    with prepared_ground() as ground, ground.config() as config:
        probe = await registry.create(name, config).probe()
    return "" if probe.available else f"{probe.name}: {probe.reason}"


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("kernel_limits")
@pytest.mark.parametrize("name", [name for name in GAPS if SOAK or name == "gvisor"])
async def test_programs_and_files_behave_as_on_every_other_backend(
    name: str, tmp_path: Path
) -> None:
    if reason := await why_not(name):
        pytest.skip(reason)
    report = tmp_path / "report.xml"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("--timeout", "300", "--junitxml", report),
            *(SUITES if SOAK else SAMPLE),
        ],
        cwd=ROOT,
        env={
            **inherited,
            "SANDBOX": name,
            "REQUIRE_ISOLATION": name,
            "CONTAINER_IMAGE": image_name(),
        },
        capture_output=True,
        text=True,
    )
    assert report.exists(), done.stdout + done.stderr
    cases = list(ET.parse(report).iter("testcase"))
    failed = {
        case.get("name")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    ran = {case.get("name") for case in cases if case.find("skipped") is None}
    assert len(ran) >= (250 if SOAK else len(SAMPLE)), done.stdout[-3000:]
    assert failed == ran & set(GAPS[name]), done.stdout[-20_000:]
