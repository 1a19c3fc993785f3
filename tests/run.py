"""Run the tests: what may run side by side first, then what measures or kills, one by one.

With paths or other arguments for pytest everything named runs in one go. ``--cov`` measures this
process and every worker it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("core", "engine", "sandbox", "tools", "server")
FLOOR = 90
ALONE = (
    "tests/integration/test_loop_volumes.py",
    "tests/contract/test_volumes.py",
    *(
        f"tests/e2e/test_{name}.py"
        for name in ("bombs", "host_full", "disk_flood", "cycles", "crash")
    ),
    *(f"tests/e2e/test_checkpoint_{name}.py" for name in ("crash", "consistency")),
)
"""Measure latencies, fill disks, kill workers and count what is mounted: nothing else beside."""
NO_TESTS = 5


def main(arguments: list[str]) -> int:
    """Run pytest; with --cov also fail when a measured layer is below the floor."""
    cov = "--cov" in arguments
    rest = [argument for argument in arguments if argument != "--cov"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    runs = [rest] if any(not a.startswith("-") for a in rest) else phases(rest)
    if cov:
        return measured(runs, env)
    return run(["-m", "pytest"], runs, env)


def phases(options: list[str]) -> list[list[str]]:
    """Arguments of the two runs."""
    workers = str(max(4, os.cpu_count() or 2))  # on two processors, half of the time is waiting
    ignored = [f"--ignore={path}" for path in ALONE]
    spread = ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
    beside = [*spread, *ignored, "tests", *options]
    return [beside, [*ALONE, *options]]


def run(prefix: list[str], runs: list[list[str]], env: dict[str, str]) -> int:
    """Run each; 0 when all passed."""
    failed = 0
    for arguments in runs:
        code = subprocess.run([sys.executable, *prefix, *arguments], cwd=ROOT, env=env).returncode
        failed |= 0 if code == NO_TESTS and len(runs) > 1 else code
    return failed


def measured(runs: list[list[str]], env: dict[str, str]) -> int:
    """Run with coverage and report by layer."""
    site = next(Path(sys.prefix).glob("lib/python3*/site-packages"))
    hook = site / "codegen_mcp_coverage.pth"
    hook.write_text("import coverage; coverage.process_startup()\n")
    env = {**env, "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml")}
    coverage = [sys.executable, "-m", "coverage"]
    (ROOT / ".coverage").unlink(missing_ok=True)
    try:
        # Processes that became another user write what they measured here too.
        with tempfile.TemporaryDirectory(dir="/var/tmp") as data:
            os.chmod(data, 0o1777)
            failed = run(["-m", "pytest"], runs, {**env, "COVERAGE_FILE": f"{data}/.coverage"})
            subprocess.run([*coverage, "combine", "-q", data], cwd=ROOT, check=True)
    finally:
        hook.unlink()
    print("\ncoverage of these layers together:", flush=True)
    layers = ",".join(f"src/codegen_mcp/{layer}/*" for layer in MEASURED)
    total = [*coverage, "report", f"--include={layers}", "--format=total"]
    subprocess.run(total, cwd=ROOT, check=True)
    for layer in MEASURED:
        print(f"\ncoverage of {layer}:", flush=True)
        report = [*coverage, "report", f"--include=src/codegen_mcp/{layer}/*"]
        report += [f"--fail-under={FLOOR}", "--skip-covered"]
        failed |= subprocess.run(report, cwd=ROOT).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
