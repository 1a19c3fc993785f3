"""Copies the guest's program to where every session's user can read it, compiled for each Python.

The package itself may lie below a closed home; and a guest that finds bytecode starts sooner.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.interpreter import Interpreter

_COMPILE_TIMEOUT_S = 60.0


def install_guest(source: Path, state: Path, interpreters: Sequence[Interpreter]) -> Path:
    """Return the directory of the guest's program below ``state``, made if missing.

    Other versions of it, which an earlier worker left, are removed.

    Args:
        source: The package directory ``sandbox/guest``.
        state: The state directory, held by this worker alone.
        interpreters: For which bytecode is made.

    Raises:
        SandboxUnavailable: The program does not compile under one of them.
    """
    files = {path.name: path.read_bytes() for path in sorted(source.glob("*.py"))}
    versions = state / "guest"
    versions.mkdir(parents=True, exist_ok=True)
    os.chmod(versions, 0o755)
    installed = versions / _digest(files, interpreters)
    if not installed.is_dir():
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=versions))
        try:
            for name, content in files.items():
                (staging / name).write_bytes(content)
            for interpreter in interpreters:
                _compile(interpreter, staging)
            _open_to_all(staging)
            os.rename(staging, installed)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    for other in versions.iterdir():
        if other != installed:
            shutil.rmtree(other, ignore_errors=True)
    return installed


def _digest(files: dict[str, bytes], interpreters: Sequence[Interpreter]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    for one in sorted(f"{one.executable}\0{one.version}" for one in interpreters):
        digest.update(one.encode() + b"\0")
    return digest.hexdigest()[:16]


def _compile(interpreter: Interpreter, directory: Path) -> None:
    """Compile for one interpreter; never checked again, because nothing changes there."""
    result = subprocess.run(
        [
            str(interpreter.executable),
            *("-I", "-S", "-m", "compileall", "-q"),
            *("--invalidation-mode", "unchecked-hash", str(directory)),
        ],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_COMPILE_TIMEOUT_S,
        check=False,
    )
    if result.returncode != 0:
        said = (result.stdout + result.stderr).decode("utf-8", "replace").strip()
        raise SandboxUnavailable(
            f"the guest does not compile under {interpreter.name} "
            f"({str(interpreter.executable)!r}): {said[-300:]}"
        )


def _open_to_all(directory: Path) -> None:
    os.chmod(directory, 0o755)
    for root, directories, names in os.walk(directory):
        for name in directories:
            os.chmod(os.path.join(root, name), 0o755)
        for name in names:
            os.chmod(os.path.join(root, name), 0o644)
