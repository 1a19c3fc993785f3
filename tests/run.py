"""Run the tests, optionally with coverage of this process and of every worker it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("core", "engine", "sandbox", "tools", "server")
FLOOR = 90


def main(arguments: list[str]) -> int:
    """Run pytest; with --cov also fail when a measured layer is below the floor."""
    cov = "--cov" in arguments
    rest = [argument for argument in arguments if argument != "--cov"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    if not cov:
        return subprocess.run([sys.executable, "-m", "pytest", *rest], cwd=ROOT, env=env).returncode
    site = next(Path(sys.prefix).glob("lib/python3*/site-packages"))
    hook = site / "codegen_mcp_coverage.pth"
    hook.write_text("import coverage; coverage.process_startup()\n")
    env["COVERAGE_PROCESS_START"] = str(ROOT / "pyproject.toml")
    env["COVERAGE_FILE"] = str(ROOT / ".coverage")
    try:
        for old in ROOT.glob(".coverage*"):
            old.unlink()
        failed = subprocess.run(
            [sys.executable, "-m", "coverage", "run", "-p", "-m", "pytest", *rest],
            cwd=ROOT,
            env=env,
        ).returncode
    finally:
        hook.unlink()
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "combine", "-q"], cwd=ROOT, check=True)
    for layer in MEASURED:
        print(f"\ncoverage of {layer}:", flush=True)
        report = [*coverage, "report", f"--include=src/codegen_mcp/{layer}/*"]
        report += [f"--fail-under={FLOOR}", "--skip-covered"]
        failed |= subprocess.run(report, cwd=ROOT).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
