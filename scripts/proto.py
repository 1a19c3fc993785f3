"""Generate the gRPC code from ``proto/`` and check that it is what is committed.

    python scripts/proto.py             write src/codegen_mcp/_proto
    python scripts/proto.py --check     compare, lint, format, look for breaking changes
    python scripts/proto.py --baseline  accept the protos as what must never break

Deterministic: the same protos and tools give the same bytes.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
BASELINE = PROTO / "baseline.binpb"
PACKAGE = ROOT / "src/codegen_mcp/_proto/codegen"
BIN = Path(sys.executable).parent

_OWN_IMPORT = re.compile(r"^from codegen\.v1 import ", re.MULTILINE)
_POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool\n"
_MODULE_NAME = re.compile(r"(BuildTopDescriptorsAndMessages\(DESCRIPTOR, )'[\w.]+'")


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    mode.add_argument("--baseline", action="store_true", help=f"rewrite {BASELINE.name}")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    if arguments.baseline:
        return buf("build", "--exclude-source-info", "-o", str(BASELINE))
    shutil.rmtree(PACKAGE, ignore_errors=True)
    generate(PACKAGE)
    return 0


def generate(package: Path) -> None:
    """Write the package ``codegen`` to this directory."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [
            f"--{kind}_out={scratch}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")
        ]
        protoc = subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, *sources],
            env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
            check=False,
            capture_output=True,
            text=True,
        )
        if protoc.returncode != 0:
            raise SystemExit(protoc.stderr)
        (package / "v1").mkdir(parents=True)
        for directory in (package, package / "v1"):
            (directory / "__init__.py").write_text('"""Generated."""\n')
        for path in sorted(Path(scratch, "codegen/v1").iterdir()):
            text = path.read_text()
            without_service = "_pb2_grpc." in path.name and "Stub" not in text
            if not without_service:
                (package / "v1" / path.name).write_text(rewrite(text))


def rewrite(text: str) -> str:
    """Make imports relative, and load the descriptors into our own pool."""
    text = _OWN_IMPORT.sub("from . import ", text)
    text = text.replace(_POOL_IMPORT, "from ...pool import POOL as _POOL\n")
    text = text.replace("_descriptor_pool.Default()", "_POOL")
    return _MODULE_NAME.sub(r"\1__name__", text)


def check() -> int:
    """Run every check; the number of those that failed."""
    failed = differences()
    for line in failed:
        sys.stderr.write(f"{line}: not what proto/ gives; run ./dev proto and commit\n")
    return (
        bool(failed)
        + bool(buf("lint"))
        + bool(buf("format", "--diff", "--exit-code"))
        + bool(buf("breaking", "--against", str(BASELINE)))
    )


def differences() -> list[str]:
    """Names of files that are not as they would be generated."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch, "codegen")
        generate(fresh)
        names = {
            str(path.relative_to(root))
            for root in (fresh, PACKAGE)
            for path in root.rglob("*")
            if path.suffix in {".py", ".pyi"}
        }
        same, _, _ = filecmp.cmpfiles(fresh, PACKAGE, sorted(names), shallow=False)
        return sorted(names - set(same))


def buf(*arguments: str) -> int:
    """Run the buf of this environment at the project's root."""
    return subprocess.run([str(BIN / "buf"), *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
