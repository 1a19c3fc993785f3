"""The examples do on real input, with real packages, what they say."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen_mcp.testing.worker_process import worker_process

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))


@pytest.fixture(scope="module")
def index():
    """Skip where this machine's uv cannot reach its package index."""
    done = subprocess.run(
        [sys.executable, "-m", "uv", "--quiet", "pip", "compile", "--no-deps", "-"],
        input="iniconfig",
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def address(index):
    """Of a worker with its usual settings, but one sandbox booted ahead."""
    with worker_process(POOL_SIZE="1", LOG_LEVEL="warn") as worker:
        yield worker.address


class Example:
    """An example as a process; keeps its lines and when each came, in seconds after the first."""

    def __init__(self, address: str, name: str, *arguments: str) -> None:
        self.lines: list[str] = []
        self.times: list[float] = []
        with subprocess.Popen(
            [sys.executable, EXAMPLES / name, *arguments],
            env={**os.environ, "CODEGEN_MCP_ADDRESS": address},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                self.lines.append(line.rstrip("\n"))
                self.times.append(time.monotonic())
        self.exit_code = process.returncode
        self.text = "\n".join(self.lines)

    def when(self, line: str) -> float:
        return self.times[self.lines.index(line)]


def test_hello_runs_without_a_worker():
    done = subprocess.run(
        [sys.executable, "-m", "codegen_mcp.cli.main", "run", EXAMPLES / "hello.py", "a", "b"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.fullmatch(
        r"hello a, from Python 3\S+ in a sandbox\nhello b, from Python 3\S+ in a sandbox\n",
        done.stdout,
    )
    assert done.returncode == 0


@pytest.mark.network
def test_a_session_is_saved_restored_and_forked():
    with worker_process(POOL_SIZE="1", LOG_LEVEL="warn") as worker:
        done = subprocess.run(
            [sys.executable, EXAMPLES / "save_and_branch.py"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "CODEGEN_MCP_ADDRESS": worker.address},
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("in full")
    assert lines[1] == "back to: weights 1.0"
    assert lines[2].startswith("lost: everything that was done after the checkpoint of ")
    assert lines[3:] == ["plus A", "plus B", "the first is as it was: weights 1.0"]


def test_a_csv_is_analysed_with_live_output_and_true_results(address, tmp_path):
    example = Example(address, "analyse_csv.py", str(tmp_path))
    assert example.exit_code == 0, example.text
    assert example.lines[-1].startswith("correct: ")
    # Importing pandas takes longer than this; output that waited for the end would come at once.
    assert example.when("wrote report.md") - example.when("loading pandas and matplotlib") > 0.2
    with (tmp_path / "sales.csv").open() as csv:
        assert sum(1 for _ in csv) > 100_000
    assert (tmp_path / "chart.png").stat().st_size > 10_000
    assert "120000 rows" in (tmp_path / "report.md").read_text()


@pytest.mark.network
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("package", "part"),
    [("attrs", "tests/test_funcs.py"), ("opt-einsum", "opt_einsum/tests/test_blas.py")],
)
def test_a_part_of_a_packages_own_tests_gives_the_same_result_as_outside(address, package, part):
    example = Example(address, "run_test_suite.py", package, "--part", part)
    assert example.exit_code == 0, example.text[-5000:]
    assert example.lines[-1] == "the same result"
    inside, outside = (re.search(r"(\d+) tests, .*", line) for line in example.lines[-3:-1])
    assert int(inside[1]) > 20
    assert inside[0] == outside[0]


@pytest.mark.network
@pytest.mark.timeout(300)
@pytest.mark.skipif(not SOAK, reason="runs with --soak; a part of each runs always")
@pytest.mark.parametrize(("package", "tests"), [("attrs", 1386), ("opt-einsum", 7891)])
def test_a_packages_own_tests_give_the_same_result_as_outside(address, package, tests):
    example = Example(address, "run_test_suite.py", package)
    assert example.exit_code == 0, example.text[-5000:]
    assert example.lines[-1] == "the same result"
    inside, outside = example.lines[-3:-1]
    assert inside.startswith(f"in the session: {tests} tests, ")
    assert inside.partition(": ")[2] == outside.partition(": ")[2]
    percent = [line for line in example.lines if re.search(r"\[ *\d+%\]$", line)]
    assert example.when("the same result") - example.when(percent[0]) > 1, "output was not live"
