"""The recipe as arguments: which walls there are, what is mounted, in which order."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.sandbox import bubblewrap_args, preconditions
from codegen_mcp.sandbox.base import HostIdentity, SandboxSpec
from codegen_mcp.sandbox.bubblewrap_args import write_recipe
from codegen_mcp.sandbox.launch_arguments import Arguments
from codegen_mcp.sandbox.launcher import PLAIN_ENVIRONMENT, ErrorPipe, descendants, entry, parent_of
from codegen_mcp.sandbox.volumes.base import VolumeUsage


class Directory:
    def __init__(self, root: Path) -> None:
        self.root = root

    def moved(self, directory: Path) -> None: ...

    def usage(self) -> VolumeUsage:
        return VolumeUsage(used_bytes=0, size_bytes=0, full=False)

    def abandon(self) -> None: ...

    async def detach(self) -> None: ...


@pytest.fixture
def spec(tmp_path: Path) -> SandboxSpec:
    for name in ("workspace", "venv"):
        (tmp_path / name).mkdir()
    return SandboxSpec(
        sandbox_id="s",
        volume=Directory(tmp_path),
        interpreter=Interpreter(
            language="python",
            name="python3.12",
            version="3.12.1",
            executable=Path("/opt/python/bin/python3.12"),
            trees=(Path("/opt/python"), Path("/srv/lib")),
            sources=((Path("/opt/python"), Path("/state/bound/1")),),
            site_packages="lib/python3.12/site-packages",
            template=Path("/state/templates/t"),
        ),
        limits=ResourceLimits(tmp_bytes=5 * MIB),
        identity=None,
        cgroup=None,
        read_only={"/run/codegen/tools": Path("/state/tools")},
    )


def recipe(spec: SandboxSpec, *, private_proc: bool = True) -> list[str]:
    with Arguments() as out:
        write_recipe(out, spec, guest=Path("/state/guest"), status_fd=9, private_proc=private_proc)
        return out.words


def follows(words: list[str], *part: str) -> bool:
    return any(tuple(words[at : at + len(part)]) == part for at in range(len(words)))


def test_every_namespace_is_new_and_nothing_is_kept(spec: SandboxSpec) -> None:
    words = recipe(spec)
    for kind in ("user", "pid", "ipc", "uts", "net", "cgroup"):
        assert f"--unshare-{kind}" in words
    for wall in ("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"):
        assert wall in words
    assert "--disable-userns" in words
    assert follows(words, "--cap-drop", "ALL")
    assert "--seccomp" in words
    assert not any(word.startswith("--share") or word == "--cap-add" for word in words)


def test_only_workspace_and_environment_can_be_written(spec: SandboxSpec) -> None:
    words = recipe(spec)
    writable = [words[at + 2] for at, word in enumerate(words) if word in ("--bind", "--dev-bind")]
    assert writable == ["/workspace", "/venv"]
    for path in ("/dev", "/proc", "/"):
        assert follows(words, "--remount-ro", path)
    assert words.index("--remount-ro") > max(
        at for at, word in enumerate(words) if word in ("--bind", "--ro-bind", "--tmpfs")
    )


def test_there_is_no_sys_and_only_chosen_files_of_etc(spec: SandboxSpec) -> None:
    words = recipe(spec)
    assert not any(word.startswith("/sys") for word in words)
    assert "/etc/shadow" not in words
    assert not follows(words, "--ro-bind", "/etc")
    for name in ("passwd", "group", "hosts", "nsswitch.conf", "resolv.conf"):
        assert words[words.index(f"/etc/{name}") - 2] == "--ro-bind-data"


def test_trees_come_from_their_sources_to_their_own_paths(spec: SandboxSpec) -> None:
    words = recipe(spec)
    assert follows(words, "--ro-bind", "/state/bound/1", "/opt/python")
    assert follows(words, "--ro-bind", "/srv/lib", "/srv/lib")
    assert follows(words, "--ro-bind", "/state/templates/t", "/run/codegen/template")
    assert follows(words, "--ro-bind", "/state/guest", "/run/codegen/guest")
    assert follows(words, "--ro-bind", "/state/tools", "/run/codegen/tools")


def test_scratch_space_is_bounded(spec: SandboxSpec) -> None:
    words = recipe(spec)
    for path in ("/tmp", "/dev/shm"):
        assert follows(words, "--perms", "1777", "--size", str(5 * MIB), "--tmpfs", path)


def test_without_a_private_proc_only_harmless_files_of_it_are_there(spec: SandboxSpec) -> None:
    words = recipe(spec, private_proc=False)
    assert "--proc" not in words
    assert "--disable-userns" not in words
    assert follows(words, "--ro-bind-try", "/proc/meminfo", "/proc/meminfo")
    assert not follows(words, "--remount-ro", "/proc")


def test_descriptors_are_closed_and_hold_what_was_written() -> None:
    with Arguments() as out:
        out.add("--one", Path("/two"), 3)
        fd = out.as_descriptor()
        assert os.read(fd, 100) == b"--one\0/two\x003\0"
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)


def test_groups_are_entered_before_the_user_changes_and_any_failure_ends_it(
    tmp_path: Path,
) -> None:
    old, new = tmp_path / "v1", tmp_path / "v2"
    for directory in (old, new):
        directory.mkdir()
        (directory / "cgroup.procs").touch()
    (old / "tasks").touch()
    words = entry(
        ["/bin/true"],
        identity=HostIdentity(uid=1234, gid=5678),
        attach_files=[old / "cgroup.procs", new / "cgroup.procs"],
    )
    script = words[2]
    assert script.startswith("set -e\n")
    assert f"echo 0 > {old}/tasks\n" in script
    assert f"echo 0 > {new}/cgroup.procs\n" in script
    assert script.index("echo 0") < script.index("exec")
    assert words[4:8] == ["/usr/bin/setpriv", "--reuid", "1234", "--regid"]
    assert "--clear-groups" in words
    assert words[-1] == "/bin/true"
    assert "setpriv" not in " ".join(entry(["/x"], identity=None, attach_files=[]))
    assert set(PLAIN_ENVIRONMENT) == {"PATH"}


def fill(fd: int) -> None:
    while True:
        os.write(fd, b"x" * 4096)


def test_the_error_pipe_keeps_the_first_part_and_never_blocks_the_writer() -> None:
    errors = ErrorPipe()
    os.write(errors.write_end, b"bwrap: no\nluck\n")
    assert errors.text() == "bwrap: no luck"
    with pytest.raises(BlockingIOError):
        fill(errors.write_end)
    errors.close()
    errors.close()
    assert errors.text().startswith("bwrap: no luck xxx")
    assert len(errors.text()) <= 4096


def test_parents_and_descendants_are_found() -> None:
    assert parent_of(os.getpid()) == os.getppid()
    assert parent_of(2**22 + 1) == 0
    assert os.getpid() in descendants(os.getppid())


def test_links_in_a_volume_are_refused(spec: SandboxSpec) -> None:
    preconditions.check_directories(spec)
    venv = spec.volume.root / "venv"
    venv.rmdir()
    with pytest.raises(SandboxUnavailable, match="venv"):
        preconditions.check_directories(spec)
    venv.symlink_to("/etc")
    with pytest.raises(SandboxUnavailable, match="not a directory"):
        preconditions.check_directories(spec)


def test_nothing_runs_as_host_root(spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for identity in (None, HostIdentity(uid=0, gid=5), HostIdentity(uid=5, gid=0)):
        with pytest.raises(SandboxUnavailable, match="root"):
            preconditions.check_identity(replace(spec, identity=identity).identity)
    preconditions.check_identity(HostIdentity(uid=5, gid=5))
    monkeypatch.setattr(os, "geteuid", lambda: 77)
    monkeypatch.setattr(os, "getegid", lambda: 78)
    preconditions.check_identity(None)
    preconditions.check_identity(HostIdentity(uid=77, gid=78))
    with pytest.raises(SandboxUnavailable, match="cannot become"):
        preconditions.check_identity(HostIdentity(uid=5, gid=5))


def test_whatever_is_bound_can_be_reached_by_a_user_other_than_the_guests(
    spec: SandboxSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # bubblewrap makes the parents that are missing, closed to all but the user it runs as.
    deep = tmp_path / "etc/ssl/certs/ca.crt"
    deep.parent.mkdir(parents=True)
    deep.touch()
    monkeypatch.setattr(bubblewrap_args, "ETC_FROM_HOST", (str(deep),))
    words = recipe(spec)
    opened = {"/"}
    reached = set()
    for at, word in enumerate(words):
        if word in ("--bind", "--ro-bind", "--ro-bind-try", "--dev-bind"):
            reached.add(words[at + 2])
            closed = [str(up) for up in Path(words[at + 2]).parents if str(up) not in opened]
            assert not closed, f"{words[at + 2]} lies below closed directories"
        elif word in ("--dir", "--tmpfs", "--dev", "--proc"):
            opened.add(words[at + 1])
    assert {str(deep), "/opt/python", "/srv/lib", "/run/codegen/guest"} <= reached
