"""Environments that are written by hand must be what the standard library's venv makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.python.environment import make_environment
from codegen_mcp.languages.python.interpreters import InterpreterDiscovery
from codegen_mcp.sandbox.base import HostIdentity

OWNER = HostIdentity(uid=210_124, gid=210_125)
SHOW = """
import json, sys, site, sysconfig
print(json.dumps([sys.prefix, sys.exec_prefix, sys.base_prefix, sys.executable, sys.path,
                  site.PREFIXES, sysconfig.get_path("purelib"), sysconfig.get_path("scripts")]))
"""


@pytest.fixture
def area() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="environments-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def interpreter(area: Path) -> Interpreter:
    return InterpreterDiscovery(area / "state").discover_now()[0]


def links(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): os.readlink(path)
        for path in root.rglob("*")
        if path.is_symlink() and path.name != "pip3"
    }


def test_it_looks_to_its_python_like_a_stock_one(area: Path, interpreter: Interpreter) -> None:
    ours, stock = area / "ours", area / "stock"
    make_environment(interpreter, ours, None)
    subprocess.run([interpreter.executable, "-I", "-m", "venv", "--without-pip", stock], check=True)

    said = [
        subprocess.run(
            [venv / "bin" / "python", "-c", SHOW],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
        ).stdout.replace(str(venv), "VENV")
        for venv in (ours, stock)
    ]

    assert said[0] == said[1]
    assert links(ours) == links(stock)
    keys = [
        [line.partition(" = ")[0] for line in (venv / "pyvenv.cfg").read_text().splitlines()]
        for venv in (ours, stock)
    ]
    assert keys[0] == keys[1] or sys.version_info < (3, 11)


def test_everything_in_it_belongs_to_the_session(area: Path, interpreter: Interpreter) -> None:
    venv = area / "venv"
    before = os.umask(0o077)
    try:
        make_environment(interpreter, venv, OWNER if os.geteuid() == 0 else None)
    finally:
        os.umask(before)

    wanted = (OWNER.uid, OWNER.gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    paths = [venv, *venv.rglob("*")]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in paths} == {wanted}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o755}


def test_an_existing_empty_directory_is_filled(area: Path, interpreter: Interpreter) -> None:
    (area / "venv").mkdir(mode=0o700)

    make_environment(interpreter, area / "venv", None)

    assert (area / "venv" / interpreter.site_packages).is_dir()


def test_a_planted_link_is_never_written_through(area: Path, interpreter: Interpreter) -> None:
    (area / "venv").mkdir()
    (area / "outside").mkdir()
    (area / "venv" / "lib").symlink_to(area / "outside")

    with pytest.raises(FileExistsError):
        make_environment(interpreter, area / "venv", None)

    assert list((area / "outside").iterdir()) == []


def test_pip_says_which_tool_to_use(area: Path, interpreter: Interpreter) -> None:
    make_environment(interpreter, area / "venv", None)

    for name in ("pip", "pip3"):
        said = subprocess.run(
            [area / "venv" / "bin" / name, "install", "requests"], capture_output=True, text=True
        )
        assert said.returncode == 1
        assert "pkg.install" in said.stderr
