"""The clone and swap of an environment, and what is left when it is cut short."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from codegen_mcp.languages.python import installer_guest
from codegen_mcp.languages.python.installer_guest import AREA, Environment

SITE = "lib/python3.11/site-packages"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "venv"
    (root / SITE).mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "lib64").symlink_to("lib")
    (root / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (root / SITE / "old.py").write_text("old")
    (root / "bin" / "tool").write_text("#!old")
    return root


def content(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file() and AREA not in path.parts
    }


def prepare(root: Path) -> Environment:
    """An environment whose clone has something new in every directory."""
    environment = Environment(str(root))
    environment.begin("")
    new = Path(environment.next)
    (new / SITE / "new.py").write_text("new")
    (new / "bin" / "tool").write_text("#!new")
    (new / "share").mkdir()
    (new / "share" / "data").write_text("data")
    return environment


NEW = {
    "bin/tool": "#!new",
    "pyvenv.cfg": "home = /usr/bin\n",
    f"{SITE}/new.py": "new",
    f"{SITE}/old.py": "old",
    "share/data": "data",
}


def test_nothing_changes_before_the_commit(root: Path) -> None:
    before = content(root)

    environment = prepare(root)
    assert content(root) == before
    environment.finish()

    assert content(root) == before
    assert not (root / AREA).exists()


def test_a_commit_swaps_every_directory(root: Path) -> None:
    environment = prepare(root)
    environment.commit()
    environment.accept()
    environment.finish()

    assert content(root) == NEW
    assert os.readlink(root / "lib64") == "lib"
    assert not (root / AREA).exists()


def test_files_of_packages_are_linked_and_scripts_are_copied(root: Path) -> None:
    environment = prepare(root)

    linked = Path(environment.next) / SITE / "old.py"
    copied = Path(environment.next) / "bin" / "tool"
    assert linked.stat().st_ino == (root / SITE / "old.py").stat().st_ino
    assert copied.stat().st_ino != (root / "bin" / "tool").stat().st_ino


class Killed(BaseException):
    """Stands for SIGKILL: no handler runs."""


def kill_after(renames: int, monkeypatch: pytest.MonkeyPatch, *, exchanges: bool) -> None:
    """Let that many renames pass (or exchanges, where the file system has them)."""
    real_exchange, real_rename = installer_guest.exchange, os.rename
    done = 0

    def pass_or_die() -> None:
        nonlocal done
        if done == renames:
            raise Killed
        done += 1

    def exchange(one: str, other: str, aside: str) -> None:
        pass_or_die()
        real_exchange(one, other, aside)

    def rename(one: str, other: str) -> None:
        if not other.endswith("/commit"):
            pass_or_die()
        real_rename(one, other)

    if exchanges:
        monkeypatch.setattr(installer_guest, "exchange", exchange)
    else:
        monkeypatch.setattr(installer_guest, "RENAME_EXCHANGE", 1 << 30)
    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("renames", range(8))
def test_a_commit_that_was_cut_short_is_undone(
    root: Path, renames: int, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(root)
    environment = prepare(root)
    kill_after(renames, monkeypatch, exchanges=exchanges)
    with contextlib.suppress(Killed):
        environment.commit()
    monkeypatch.undo()

    Environment(str(root)).finish()

    assert content(root) == before
    assert not (root / AREA).exists()


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("renames", range(8))
def test_an_undo_that_was_cut_short_is_done_again(
    root: Path, renames: int, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(root)
    environment = prepare(root)
    environment.commit()
    kill_after(renames, monkeypatch, exchanges=exchanges)
    with contextlib.suppress(Killed):
        environment.undo()
    monkeypatch.undo()

    Environment(str(root)).finish()

    assert content(root) == before


def test_libraries_are_swapped_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = prepare(root)
    kill_after(1, monkeypatch, exchanges=True)

    with pytest.raises(Killed):
        environment.commit()

    assert (root / SITE / "new.py").exists()
    assert (root / "bin" / "tool").read_text() == "#!old"


@pytest.mark.parametrize(
    "note", ["", "[", "5", "1 ../x", "x lib", "5 lib\\n", "\\0\\n\\n", "1 \\0"]
)
def test_a_commit_note_that_is_nonsense_is_dropped(root: Path, note: str) -> None:
    before = content(root)
    prepare(root)
    (root / AREA / "commit").write_text(note)

    Environment(str(root)).finish()

    assert content(root) == before
    assert not (root / AREA).exists()


def test_a_file_system_without_exchange_is_swapped_in_steps(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = prepare(root)
    monkeypatch.setattr(installer_guest, "RENAME_EXCHANGE", 1 << 30)

    environment.commit()
    environment.accept()
    environment.finish()

    assert content(root) == NEW


@pytest.mark.skipif(os.geteuid() == 0, reason="root is not stopped by modes")
def test_directories_without_any_rights_are_removed(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    os.chmod(deep, 0)
    os.chmod(tmp_path / "a", 0o500)

    installer_guest.wipe(str(tmp_path / "a"))

    assert not (tmp_path / "a").exists()


def test_wiping_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "kept")

    installer_guest.wipe(str(tmp_path / "a"))

    assert (tmp_path / "kept" / "file").exists()
    shutil.rmtree(tmp_path / "kept")


def test_only_modules_of_new_distributions_are_compiled(root: Path) -> None:
    def add(site: Path, name: str) -> None:
        (site / f"{name}-1.dist-info").mkdir()
        record = f"{name}.py,,\n../../../bin/x.py,,\n{name}-1.dist-info/RECORD,,\n"
        (site / f"{name}-1.dist-info" / "RECORD").write_text(record)

    add(root / SITE, "old")
    environment = prepare(root)
    add(Path(environment.next) / SITE, "new")

    assert environment.new_modules(SITE) == ["new.py"]
