"""Discovery of interpreters: what is found, in which order, and what is refused and why."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codegen_mcp.languages.python import interpreter_probe
from codegen_mcp.languages.python.interpreter_probe import NotUsable, ask
from codegen_mcp.languages.python.interpreter_trees import first_closed, needed_trees
from codegen_mcp.languages.python.interpreters import InterpreterDiscovery
from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.base import HostIdentity

SOMEBODY = HostIdentity(uid=210_123, gid=210_123)
SYSTEM = Path("/usr/bin/python3")
BASE = ask(SYSTEM if SYSTEM.exists() else Path(sys.executable), None)
"""What home-made interpreters are made of: the system's, whose library lies below /usr."""
SERIES = ".".join(BASE.version.split(".")[:2])
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def area() -> Iterator[Path]:
    """A directory that every user can pass through (pytest's own is closed)."""
    directory = Path(tempfile.mkdtemp(prefix="interpreters-"))
    directory.chmod(0o711)
    yield directory
    for entry in mounts.mounts_below(directory):
        mounts.unmount(entry.mount_point, mounts.UMOUNT_NOFOLLOW | mounts.MNT_DETACH)
    shutil.rmtree(directory)


@pytest.fixture
def state(area: Path) -> Path:
    (area / "state").mkdir(mode=0o711)
    return area / "state"


def base_interpreter() -> Path:
    return BASE.executable


def home_made(prefix: Path) -> Path:
    """A second interpreter: the binary copied, its library linked."""
    base = ask(base_interpreter(), None)
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib").mkdir()
    for directory in (prefix, prefix / "bin", prefix / "lib"):
        directory.chmod(0o755)
    executable = prefix / "bin" / f"python{SERIES}"
    shutil.copy(base.executable, executable)
    (prefix / "lib" / f"python{SERIES}").symlink_to(base.standard_library[0])
    return executable


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def as_ordinary_user(action: Callable[[], Any]) -> Any:
    """Run in a child that is no longer root; what it returns must pickle."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(SOMEBODY.gid, SOMEBODY.gid, SOMEBODY.gid)
                os.setresuid(SOMEBODY.uid, SOMEBODY.uid, SOMEBODY.uid)
            try:
                answer = action()
            except Exception as error:
                answer = repr(error)
            with os.fdopen(writer, "wb") as stream:
                pickle.dump(answer, stream)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    assert os.waitpid(pid, 0)[1] == 0
    return pickle.loads(data)


def test_the_systems_interpreter_or_the_workers_own_is_found_without_being_named(
    state: Path,
) -> None:
    discovery = InterpreterDiscovery(state)

    found = discovery.discover_now()

    assert SERIES in {one.name.removeprefix("python") for one in found}
    first = found[0]
    assert first.language == "python"
    assert first.site_packages == f"lib/{first.name}/site-packages"
    seen = subprocess.run(
        [first.template / "bin" / "python", "-I", "-c", "import sys; print(sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.strip() == str(first.template)


def test_the_base_of_an_environment_is_what_counts(area: Path, state: Path) -> None:
    subprocess.run(
        [base_interpreter(), "-I", "-m", "venv", "--without-pip", area / "venv"], check=True
    )

    discovery = InterpreterDiscovery(
        state, explicit=[area / "venv" / "bin" / "python"], system_directories=()
    )

    assert [one.executable for one in discovery.discover_now()] == [base_interpreter()]


def test_a_named_one_wins_the_name_of_its_series(area: Path, state: Path) -> None:
    executable = home_made(area / "opt" / "made")
    (area / "opt").chmod(0o755)

    discovery = InterpreterDiscovery(state, explicit=[executable])
    found = discovery.discover_now()

    assert found[0].executable == executable
    assert found[0].trees == (area / "opt" / "made",)
    assert found[0].sources == ()
    assert [one.name for one in found].count(f"python{SERIES}") == 1
    assert any(f"python{SERIES} is already" in reason for _, reason in discovery.refused)


def test_the_same_file_under_two_names_is_one(area: Path, state: Path) -> None:
    (area / "bin").mkdir()
    for name in ("python3", f"python{SERIES}"):
        (area / "bin" / name).symlink_to(base_interpreter())

    discovery = InterpreterDiscovery(state, system_directories=[area / "bin"])

    found = discovery.discover_now()

    assert [one.executable for one in found].count(base_interpreter()) == 1
    assert [path for path, _ in discovery.refused if path.is_relative_to(area)] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo broken >&2; exit 3", "it ended with 3: broken"),
        ("echo hello", "did not answer as a Python interpreter"),
        (
            """echo '{"implementation": "pypy", "version": "3.10.14", """
            """"version_info": [3, 10, 14]}'""",
            "it is pypy 3.10.14; CPython 3.8 or later is needed",
        ),
        (
            """echo '{"implementation": "cpython", "version": "3.7.1", """
            """"version_info": [3, 7, 1]}'""",
            "it is cpython 3.7.1; CPython 3.8 or later is needed",
        ),
        (
            """echo '{"implementation": "cpython", "version": "3.11.2", """
            """"version_info": [3, 11, 2], "missing": ["asyncio"]}'""",
            "its standard library lacks asyncio",
        ),
    ],
)
def test_what_is_no_usable_python_is_refused_with_its_reason(
    area: Path, state: Path, text: str, reason: str
) -> None:
    fake = script(area / "python3.99", text)

    discovery = InterpreterDiscovery(state, explicit=[fake], system_directories=())
    discovery.discover_now()

    assert [path for path, _ in discovery.refused] == [fake]
    assert reason in discovery.refused[0][1]


def test_one_that_does_not_answer_is_given_up_with_all_it_started(
    area: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter_probe, "PROBE_TIMEOUT_S", 0.3)
    pid_file = area / "pid"
    fake = script(area / "python3", f"sleep 1000 & echo $! > {pid_file}; wait")
    area.chmod(0o777)

    with pytest.raises(NotUsable, match="did not answer within"):
        ask(fake, None)

    left = Path(f"/proc/{int(pid_file.read_text())}/stat")
    deadline = time.monotonic() + 5
    while is_running(left):  # the kernel removes it a moment after the signal
        assert time.monotonic() < deadline, "what the script started still runs"


def is_running(stat_file: Path) -> bool:
    try:
        return stat_file.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_missing_one_is_refused_by_name(state: Path) -> None:
    discovery = InterpreterDiscovery(state, explicit=[Path("/nowhere/python3.12")])

    assert discovery.discover_now()
    assert discovery.refused[0] == (
        Path("/nowhere/python3.12"),
        "there is no file '/nowhere/python3.12'",
    )


def test_a_prefix_that_holds_more_than_an_interpreter_is_refused(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(area / "home"))
    executable = home_made(area / "home")

    with pytest.raises(NotUsable, match="somebody's home is in there"):
        needed_trees(ask(executable, None))


@needs_root
def test_one_below_a_closed_home_is_mounted_read_only_where_sessions_reach_it(
    area: Path, state: Path
) -> None:
    skip_unless_mounts_are_allowed(area)
    executable = home_made(area / "home" / "python")
    (area / "home").chmod(0o700)
    assert first_closed(executable, SOMEBODY) == area / "home"

    discovery = InterpreterDiscovery(state, explicit=[executable], identity=SOMEBODY)
    interpreter = discovery.discover_now()[0]

    assert interpreter.executable == executable
    [(tree, source)] = interpreter.sources
    assert interpreter.trees == (tree,) == (area / "home" / "python",)
    assert source.is_relative_to(state)
    said = subprocess.run(
        [source / "bin" / executable.name, "-I", "-c", "import os; print(os.getuid())"],
        user=SOMEBODY.uid,
        group=SOMEBODY.gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"{SOMEBODY.uid}\n"
    with pytest.raises(OSError, match="Read-only"):
        (source / "new").write_text("")

    assert discovery.discover_now()[0].sources == interpreter.sources
    assert len(mounts.mounts_below(state)) == 1
    discovery.close()
    assert mounts.mounts_below(state) == []


@needs_root
def test_a_mount_that_shows_another_directory_is_replaced(area: Path, state: Path) -> None:
    skip_unless_mounts_are_allowed(area)
    executable = home_made(area / "home" / "python")
    (area / "home").chmod(0o700)
    InterpreterDiscovery(state, explicit=[executable], identity=SOMEBODY).discover_now()
    (area / "home" / "python").rename(area / "home" / "old")
    home_made(area / "home" / "python")

    again = InterpreterDiscovery(state, explicit=[executable], identity=SOMEBODY)
    [(tree, source)] = again.discover_now()[0].sources

    assert os.stat(tree).st_ino == os.stat(source).st_ino
    assert len(mounts.mounts_below(state)) == 1
    again.close()


@needs_root
def test_one_that_is_closed_itself_is_refused(area: Path, state: Path) -> None:
    executable = home_made(area / "opt" / "python")
    (area / "opt").chmod(0o755)
    executable.chmod(0o700)

    discovery = InterpreterDiscovery(
        state, explicit=[executable], identity=SOMEBODY, system_directories=()
    )
    discovery.discover_now()

    reason = dict(discovery.refused)[executable]
    assert "closed to sessions" in reason or "cannot be started" in reason


@needs_root
def test_a_state_directory_that_sessions_cannot_reach_is_named(area: Path) -> None:
    (area / "closed").mkdir(mode=0o700)

    discovery = InterpreterDiscovery(area / "closed" / "state", identity=SOMEBODY)

    assert discovery.discover_now() == []
    assert any(f"chmod o+x {area / 'closed'}" in reason for _, reason in discovery.refused)


def test_an_ordinary_user_uses_an_interpreter_in_its_own_closed_home(area: Path) -> None:
    home = area / "home"
    executable = home_made(home / "python")
    state = area / "state-of-user"
    state.mkdir()
    for path in (home, state):
        path.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(path, SOMEBODY.uid, SOMEBODY.gid)

    def discover() -> Any:
        discovery = InterpreterDiscovery(state, explicit=[executable], system_directories=())
        return discovery.discover_now(), discovery.refused

    found, refused = as_ordinary_user(discover)

    assert found[0].executable == executable, refused
    assert found[0].sources == ()


def test_templates_are_readable_whatever_the_umask(state: Path) -> None:
    before = os.umask(0o077)
    try:
        template = InterpreterDiscovery(state).discover_now()[0].template
    finally:
        os.umask(before)

    modes = {
        path.name: stat.S_IMODE(path.lstat().st_mode)
        for path in (template.parent, template, *template.rglob("*"))
        if not path.is_symlink()
    }
    assert set(modes.values()) == {0o755, 0o644}


def test_a_damaged_template_is_made_again(state: Path) -> None:
    first = InterpreterDiscovery(state).discover_now()[0].template
    (first / "pyvenv.cfg").write_text("home = /nowhere\n")

    second = InterpreterDiscovery(state).discover_now()[0].template

    assert second == first
    assert "home = /nowhere" not in (second / "pyvenv.cfg").read_text()
    names = {path.name for path in second.parent.iterdir()}
    assert all(name.startswith("python") for name in names)


async def test_discovery_does_not_block_the_loop(state: Path) -> None:
    assert await InterpreterDiscovery(state).discover()


def skip_unless_mounts_are_allowed(area: Path) -> None:
    target = area / "try"
    target.mkdir()
    try:
        mounts.mount("none", target, "tmpfs")
    except OSError as error:
        pytest.skip(f"this root may not mount: {error.strerror}")
    mounts.unmount(target)
