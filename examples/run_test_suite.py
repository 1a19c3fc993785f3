"""Runs a package's own tests in a session and outside, and compares: run_test_suite.py PACKAGE.

With --part FILE only that file of its tests, which is much faster.
What the session installs is installed outside too, in the same versions, in a throw-away
environment of the same Python; so the worker must be on this machine. Exit code 0 says that every
test had the same outcome on both sides. Needs a worker, see analyse_csv.py.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from source_distribution import UV, download_sdist, index_environment

from codegen_mcp.client import Package, Sandbox

TIMEOUT_S = 900


@dataclass(frozen=True)
class Suite:
    """A version of a package, where its tests are, pytest's options, and what they need."""

    version: str
    tests: str
    requires: tuple[str, ...]
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


SUITES = {
    "attrs": Suite(
        version="26.1.0",
        tests="tests",
        requires=("pytest==9.2.0", "hypothesis==6.170.15", "cloudpickle==3.1.2"),
        # The profile makes no test fail by the clock, and tries the same examples on both sides.
        options=("--hypothesis-profile=ci",),
        env={"PYTHONPATH": "src"},
    ),
    "opt-einsum": Suite(
        version="3.4.0",
        tests="opt_einsum",
        requires=("pytest==9.2.0", "numpy==2.4.6"),
    ),
}

Outcomes = Counter[tuple[str, str]]
"""How often each test (by name) had which outcome."""


def main(name: str, part: str = "") -> int:
    """Run the suite (or that file of it) on both sides at once and compare."""
    suite = SUITES[name]
    pinned = f"{name}=={suite.version}"
    chosen = " ".join([part or suite.tests, *suite.options])
    command = f"python -m pytest {chosen} -q -p no:cacheprovider --junitxml=outcomes.xml"
    with (
        tempfile.TemporaryDirectory() as scratch,
        Sandbox.create(memory_bytes=1 << 30, envs=suite.env) as sandbox,
    ):
        sdist = download_sdist(pinned, Path(scratch))
        folder = sdist.name.removesuffix(".tar.gz")
        sandbox.files.write(sdist.name, sdist.read_bytes())
        sandbox.commands.run(f"tar xf {sdist.name}")
        packages = sandbox.install(pinned, *suite.requires, timeout=300)
        print("installed", ", ".join(f"{p.name} {p.version}" for p in packages), flush=True)

        with tarfile.open(sdist) as archive:
            archive.extractall(scratch)
        bin_directory = make_environment(sandbox, packages, Path(scratch, "venv"))
        outside = subprocess.Popen(
            ["sh", "-c", command],
            cwd=Path(scratch, folder),
            env={"PATH": f"{bin_directory}:/usr/bin:/bin", "HOME": scratch, **suite.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            result = sandbox.commands.run(
                command,
                cwd=folder,
                timeout=TIMEOUT_S,
                on_stdout=lambda text: print(text, end="", flush=True),
                on_stderr=lambda text: print(text, end="", flush=True, file=sys.stderr),
                check=False,  # a failed test is a result to compare, not an error
            )
            if result.ended_by != "exit":
                sys.exit(f"the tests could not end by themselves: {result.error}")
            outside.wait(TIMEOUT_S)
        finally:
            outside.kill()
            outside.wait()
        inside_report = sandbox.files.read(f"{folder}/outcomes.xml")
        outside_report = Path(scratch, folder, "outcomes.xml").read_text()
    return compare(read_outcomes(inside_report), read_outcomes(outside_report))


def make_environment(sandbox: Sandbox, packages: Sequence[Package], venv: Path) -> Path:
    """Make an environment of the session's Python with these packages; return its bin folder."""
    ask = sandbox.run_python("import sys; print(sys._base_executable)")
    python = ask.stdout.strip()
    subprocess.run([*UV, "venv", "--python", python, venv], check=True)
    pins = [f"{package.name}=={package.version}" for package in packages]
    install = [*UV, "pip", "install", "--python", str(venv), "--no-deps", *pins]
    subprocess.run(install, env=index_environment(), check=True)
    return venv / "bin"


def read_outcomes(junit_xml: str) -> Outcomes:
    """Count each test's outcome: passed, failure, error, skip or xfail."""
    outcomes: Outcomes = Counter()
    for case in ET.fromstring(junit_xml).iter("testcase"):
        kinds = [child.get("type", child.tag) for child in case]
        outcome = kinds[0].removeprefix("pytest.") if kinds else "passed"
        outcomes[f"{case.get('classname')}::{case.get('name')}", outcome] += 1
    return outcomes


def compare(inside: Outcomes, outside: Outcomes) -> int:
    """Print both sums and each difference; return the exit code."""
    for side, outcomes in {"in the session": inside, "outside": outside}.items():
        sums: Counter[str] = Counter()
        for (_, outcome), count in outcomes.items():
            sums[outcome] += count
        words = ", ".join(f"{count} {outcome}" for outcome, count in sums.most_common())
        print(f"{side}: {outcomes.total()} tests, {words}")
    for test, outcome in sorted(inside - outside):
        print(f"only in the session: {test} {outcome}")
    for test, outcome in sorted(outside - inside):
        print(f"only outside: {test} {outcome}")
    same = inside == outside
    print("the same result" if same else "not the same result")
    return 0 if same else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("package", choices=sorted(SUITES))
    parser.add_argument("--part", default="", metavar="FILE", help="only this file of its tests")
    asked = parser.parse_args()
    sys.exit(main(asked.package, asked.part))
