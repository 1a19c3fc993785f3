"""Python environments, written directly: a venv is a few links and a ``pyvenv.cfg``.

Two kinds: a template per interpreter, read-only, from which the guest is started; and each
session's own, which it may change. Sources: PEP 405; CPython Lib/venv.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.sandbox.base import VENV, HostIdentity

_NO_PIP = """\
#!/bin/sh
echo "pip is not installed here; install packages with the pkg.install tool" >&2
exit 1
"""


def make_template(templates: Path, *, executable: Path, series: str, version: str) -> Path:
    """Return the interpreter's read-only environment below ``templates``, made if missing.

    Args:
        templates: Directory of all templates; made if missing.
        executable: Real path of the interpreter.
        series: ``3.11``.
        version: ``3.11.2``.
    """
    templates.mkdir(parents=True, exist_ok=True)
    os.chmod(templates, 0o755)
    key = hashlib.sha256(f"{executable}\0{version}\0{series}".encode()).hexdigest()[:12]
    template = templates / f"python{series}-{key}"
    config = _config(executable, version)
    if _is_template(template, executable, config):
        return template
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=templates))
    try:
        _write(_Owned(None), staging, executable, series, config)
        if template.exists():
            os.rename(template, staging / "replaced")
        os.rename(staging, template)
        shutil.rmtree(template / "replaced", ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return template


def make_environment(interpreter: Interpreter, venv: Path, identity: HostIdentity | None) -> None:
    """Write a session's empty environment; what a sandbox sees at ``/venv``.

    Args:
        interpreter: What it runs.
        venv: Host path; made if missing, else an empty directory.
        identity: The owner of everything in it; None is the worker's own user.

    Raises:
        FileExistsError: The directory is not empty.
    """
    owned = _Owned(identity)
    series = interpreter.name.removeprefix("python")
    venv.mkdir(exist_ok=True)
    config = _config(interpreter.executable, interpreter.version)
    _write(owned, venv, interpreter.executable, series, config)
    owned.file(venv / "bin" / "pip", _NO_PIP, 0o755)
    owned.link(venv / "bin" / "pip3", "pip")


def site_packages(series: str) -> str:
    """Return where packages lie, relative to an environment."""
    return f"lib/python{series}/site-packages"


def _write(owned: _Owned, root: Path, executable: Path, series: str, config: str) -> None:
    library = root
    owned.adopt(root)
    owned.directory(root / "bin")
    for name in Path(site_packages(series)).parts:
        library = library / name
        owned.directory(library)
    owned.link(root / "lib64", "lib")
    name = f"python{series}"
    owned.link(root / "bin" / name, str(executable))
    owned.link(root / "bin" / "python3", name)
    owned.link(root / "bin" / "python", name)
    owned.file(root / "pyvenv.cfg", config, 0o644)


def _config(executable: Path, version: str) -> str:
    """Return ``pyvenv.cfg`` as the standard library's venv writes it since 3.11."""
    return (
        f"home = {executable.parent}\n"
        "include-system-site-packages = false\n"
        f"version = {version}\n"
        f"executable = {executable}\n"
        f"command = {executable} -m venv --without-pip {VENV}\n"
    )


def _is_template(template: Path, executable: Path, config: str) -> bool:
    python = template / "bin" / "python"
    try:
        same = (template / "pyvenv.cfg").read_text() == config
        return same and os.path.realpath(python) == str(executable)
    except OSError:
        return False


class _Owned:
    """Makes entries with exact modes, whatever the umask, and gives them to their owner."""

    def __init__(self, identity: HostIdentity | None) -> None:
        self._identity = identity if os.geteuid() == 0 else None

    def directory(self, path: Path) -> None:
        os.mkdir(path, 0o755)
        self.adopt(path)

    def adopt(self, path: Path) -> None:
        """Give an existing directory its mode and owner."""
        os.chmod(path, 0o755)
        self._give(path)

    def link(self, path: Path, target: str) -> None:
        os.symlink(target, path)
        self._give(path)

    def file(self, path: Path, text: str, mode: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            os.write(fd, text.encode())
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        self._give(path)

    def _give(self, path: Path) -> None:
        if self._identity is not None:
            os.lchown(path, self._identity.uid, self._identity.gid)
