"""The guest's program is copied whole, compiled, readable for all, and only once."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import codegen_mcp.sandbox.guest
from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.python.guest_install import install_guest
from codegen_mcp.languages.python.interpreters import InterpreterDiscovery

SOURCE = Path(codegen_mcp.sandbox.guest.__file__).parent


@pytest.fixture
def state() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="guest-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def interpreters(state: Path) -> list[Interpreter]:
    return InterpreterDiscovery(state).discover_now()


def test_all_of_it_is_there_for_everybody_to_read(
    state: Path, interpreters: list[Interpreter]
) -> None:
    before = os.umask(0o077)
    try:
        guest = install_guest(SOURCE, state, interpreters)
    finally:
        os.umask(before)

    for source in SOURCE.glob("*.py"):
        assert (guest / source.name).read_bytes() == source.read_bytes()
    modes = {path.stat().st_mode & 0o777 for path in (guest.parent, guest, *guest.rglob("*"))}
    assert modes == {0o755, 0o644}


def test_bytecode_is_what_runs(state: Path, interpreters: list[Interpreter]) -> None:
    guest = install_guest(SOURCE, state, interpreters[:1])
    (guest / "codec.py").write_text("raise SystemExit('the source was compiled again')")

    said = subprocess.run(
        [
            interpreters[0].executable,
            *("-S", "-B", "-c"),
            "import codec; print(codec.encode([b'ok']))",
        ],
        env={"PYTHONPATH": str(guest)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout == "b'\\x02\\x00\\x00\\x00ok'\n"
    assert any((guest / "__pycache__").glob("main.*.pyc"))


def test_a_second_start_changes_nothing(state: Path, interpreters: list[Interpreter]) -> None:
    first = install_guest(SOURCE, state, interpreters)
    stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*")}

    assert install_guest(SOURCE, state, interpreters) == first

    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == stamps


def test_another_version_replaces_it(
    state: Path, interpreters: list[Interpreter], tmp_path: Path
) -> None:
    first = install_guest(SOURCE, state, interpreters)
    changed = tmp_path / "guest"
    shutil.copytree(SOURCE, changed)
    (changed / "codec.py").write_text("# changed\n")

    second = install_guest(changed, state, interpreters)

    assert second != first
    assert list((state / "guest").iterdir()) == [second]


def test_a_program_that_does_not_compile_is_named_and_nothing_is_left(
    state: Path, interpreters: list[Interpreter], tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text("def broken(:\n")

    with pytest.raises(SandboxUnavailable, match=r"does not compile under python3"):
        install_guest(tmp_path, state, interpreters)

    assert list((state / "guest").iterdir()) == []


def test_the_program_needs_nothing_but_the_standard_library() -> None:
    own = {path.stem for path in SOURCE.glob("*.py")}
    for path in SOURCE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                assert top in own or top in sys.stdlib_module_names, (path, name)
