"""Hosts that grant less: what the probe finds there, and what a worker is then offered."""

import asyncio
import errno
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import InvalidRequest, SandboxUnavailable
from codegen_mcp.sandbox import bubblewrap, fixes, landlock, registry, seccomp
from codegen_mcp.sandbox import seccomp_tables as tables
from codegen_mcp.sandbox.base import WALLS, Enforcement, IsolationLevel, Probe
from codegen_mcp.sandbox.report import describe
from codegen_mcp.sandbox.selftest.catalogue import QUICK
from codegen_mcp.testing.sandbox_child import run_as
from codegen_mcp.testing.sandbox_ground import Ground, open_directory, prepared_ground
from codegen_mcp.testing.sandbox_rig import Rig

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the host's mounts")


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with prepared_ground() as prepared:
        yield prepared


async def test_the_strongest_backend_is_chosen_and_said(ground: Ground) -> None:
    with ground.config() as config:
        choice = await registry.choose(config)
    assert choice.backend.name == "bubblewrap"
    assert choice.probe.level is IsolationLevel.BUBBLEWRAP
    assert len(choice.probe.checks) == len(QUICK) >= 8
    assert all(held for _, held, _ in choice.probe.checks)
    assert tuple(choice.probe.enforces) == WALLS
    said = "\n".join(describe(choice.probe, facts={"uids": "1-2"}, details={"pids": "64"}))
    assert "backend=bubblewrap" in said
    assert "uids=1-2" in said
    assert "enforced by kernel: filesystem network processes syscalls" in said
    assert "pids(64)" in said
    assert "NOT enforced: disk" in said


async def test_what_is_weaker_than_required_is_refused_with_the_flag_that_accepts_it(
    ground: Ground,
) -> None:
    with ground.config() as config:
        with pytest.raises(SandboxUnavailable, match="--require-isolation process-hardened"):
            await registry.choose(config, name="process")
        choice = await registry.choose(
            config, name="process", required=IsolationLevel.PROCESS_HARDENED
        )
        with pytest.raises(SandboxUnavailable, match="'gvisor' or stronger"):
            await registry.choose(config, name="bubblewrap", required=IsolationLevel.GVISOR)
    assert "known gaps" in choice.probe.reason
    assert "WARNING" in "\n".join(describe(choice.probe))


async def test_an_older_landlock_holds_but_for_what_it_does_not_cover(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    if landlock.abi() < 5:
        pytest.skip("this kernel's Landlock is older still")
    monkeypatch.setattr(landlock, "abi", lambda: 5)
    with ground.config() as config:
        backend = registry.create("process-hardened", config)
        found = await backend.probe()
        if config.identity is None:
            assert not found.available
            assert "signal the worker" in found.reason
            return
        assert found.available, found.reason
        assert "abstract sockets" in found.reason
        async with Rig(backend, config, ground.identities) as rig:
            place = await rig.place()
            code = "import os, time\nfor _ in range(3): os.fork() or time.sleep(60)"
            ran = await rig.run(place, code)
            assert ran.end.leftovers >= 3
            assert (await rig.run(place, "print(1)")).stdout == b"1\n"


async def test_the_bare_backend_needs_explicit_consent(ground: Ground) -> None:
    bare = IsolationLevel.PROCESS_BARE
    with ground.config() as config:
        with pytest.raises(SandboxUnavailable, match="process-bare and"):
            await registry.choose(config, name="process-bare")
        automatic = await registry.choose(config, required=bare)
        assert automatic.probe.level is not bare
        choice = await registry.choose(config, name="process-bare", required=bare)
        walls = ("filesystem", "network", "processes", "syscalls")
        assert {choice.probe.enforces[wall] for wall in walls} == {Enforcement.NONE}
        async with Rig(choice.backend, config, ground.identities) as rig:
            place = await rig.place()
            assert (await rig.run(place, "print(1)")).stdout == b"1\n"


async def test_unknown_names_are_refused_with_the_known_ones(ground: Ground) -> None:
    with ground.config() as config:
        known = r"auto, gvisor, container, bubblewrap, .*process-hardened"
        with pytest.raises(InvalidRequest, match=known):
            await registry.choose(config, name="docker")
        with pytest.raises(InvalidRequest, match="process-bare"):
            registry.parse_level("strong")


@needs_root
def test_where_proc_is_masked_bubblewrap_works_without_it_and_says_so(ground: Ground) -> None:
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    prefix = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh"]
    done = run_as(ground, ["probe", "bubblewrap"], prefix=prefix)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["available"], found["reason"]
    assert found["level"] == "bubblewrap-noproc"
    assert "no private /proc" in found["reason"]
    assert "procMount" in found["fix"]


async def test_without_a_private_proc_the_walls_hold(ground: Ground) -> None:
    with ground.config() as config:
        backend = bubblewrap.BubblewrapBackend(config, private_proc=False)
        found = await backend.probe()
        assert found.available, found.reason
        assert found.level is IsolationLevel.BUBBLEWRAP_NOPROC
        async with Rig(backend, config, ground.identities) as rig:
            place = await rig.place()
            code = "import os; print(os.path.exists('/proc/1'), open('/proc/meminfo').read(8))"
            ran = await rig.run(place, code)
            assert ran.stdout.startswith(b"False MemTotal")


def without_namespaces() -> None:
    """Refuse new namespaces to this process, as the default filter of containers does."""
    arch = seccomp.machine()
    out = seccomp.Assembler()
    out.load(0)
    for name, call in (("unshare", tables.NAMESPACES["unshare"]), ("clone", tables.CLONE)):
        out.equal(getattr(call, arch), None, f"{name}.end")
        out.load(16)
        out.any_bit(tables.CLONE_NAMESPACES, None, f"{name}.fine")
        out.give(seccomp.refuse(errno.EPERM))
        out.label(f"{name}.fine")
        out.give(seccomp.ALLOW)
        out.label(f"{name}.end")
    out.equal(tables.ABSENT["clone3"].x86_64, None, "allow")
    out.give(seccomp.refuse(errno.ENOSYS))
    out.label("allow")
    out.give(seccomp.ALLOW)
    import ctypes

    program = out.assemble()
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(header, len(header))
    zero = ctypes.c_ulong(0)
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(buffer), zero, zero) == 0


def in_child(work) -> str:
    """Do the work in a forked process and return what it says."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            said = work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def test_where_namespaces_are_refused_the_process_backend_is_what_is_left(ground: Ground) -> None:
    def work() -> str:
        without_namespaces()
        with ground.config() as config:
            choice = asyncio.run(registry.choose(config, required=IsolationLevel.PROCESS_HARDENED))
            return "\n".join(describe(choice.probe, rejected=choice.rejected))

    if landlock.abi() < 1:
        pytest.skip("this kernel has no Landlock")
    said = in_child(work)
    assert "backend=process-hardened" in said
    assert "no bubblewrap: " in said
    assert "hostUsers: false" in said


def test_where_namespaces_are_refused_a_worker_that_requires_them_does_not_start(
    ground: Ground,
) -> None:
    def work() -> str:
        without_namespaces()
        with ground.config() as config:
            asyncio.run(registry.choose(config))
        return "started"

    said = in_child(work)
    assert said.startswith("SandboxUnavailable")
    assert "--require-isolation process-hardened" in said or "no Landlock" in said


@needs_root
def test_a_bubblewrap_with_privileges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_directory() as directory:
        program = directory / "bwrap"
        shutil.copy(bubblewrap.find_bubblewrap(), program)
        monkeypatch.setattr(bubblewrap, "SEARCHED", str(directory))
        assert bubblewrap.find_bubblewrap() == str(program)
        os.chmod(program, 0o4755)
        with pytest.raises(SandboxUnavailable, match="set-user-ID"):
            bubblewrap.find_bubblewrap()


async def test_a_missing_bubblewrap_is_named_with_its_package(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "SEARCHED", "/nonexistent")
    with ground.config() as config:
        found = await bubblewrap.BubblewrapBackend(config).probe()
    assert not found.available
    assert "bubblewrap" in found.fix


@pytest.mark.parametrize(
    ("name", "value", "reason", "fix"),
    [
        (
            "kernel/unprivileged_userns_clone",
            "0",
            "No permissions to creating new namespace",
            "sysctl",
        ),
        ("user/max_user_namespaces", "0", "Creating new namespace failed", "max_user_namespaces"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "bwrap: setting up uid map: Permission denied",
            "bwrap-userns-restrict",
        ),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted",
            "bwrap-userns-restrict",
        ),
        ("kernel/none", "0", "Creating new namespace failed: Operation not permitted", "hostUsers"),
        ("kernel/none", "0", "Can't mount proc on /newroot/proc", "procMount"),
        ("kernel/none", "0", "bwrap: Unknown option --disable-userns", "0.8"),
    ],
)
def test_the_fix_fits_the_reason(
    tmp_path: Path, name: str, value: str, reason: str, fix: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(value + "\n")
    assert fix in fixes.fix_for(reason, tmp_path)


def test_an_unavailable_backend_is_described_with_its_fix() -> None:
    used = Probe(name="p", available=True, level=IsolationLevel.PROCESS_HARDENED)
    other = Probe(
        name="bubblewrap",
        available=False,
        level=IsolationLevel.BUBBLEWRAP,
        reason="no namespaces",
        fix="do this",
    )
    assert "no bubblewrap: no namespaces; to get it: do this" in "\n".join(
        describe(used, rejected=[other])
    )
