"""A program in a session behaves as under ``python FILE``.

Each program in ``fidelity/programs`` runs three ways in real sandboxes: in the forked interpreter,
in a fresh one (forced by an environment variable), and as the reference through
``/venv/bin/python``. Output, exit code, signal and every file left in the workspace must be equal.

A program may have a directory of the same name beside it, copied into the workspace with it.
Comments in it set the runs: ``# args:`` (each line is a run), ``# stdin:`` (with escapes).
FIDELITY_PYTHON names another interpreter than the system's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

import codegen_mcp.sandbox.guest
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import GIB, MIB, ResourceLimits, RunLimits
from codegen_mcp.core.task import Argv, Command, PythonCode, PythonFile, Stream
from codegen_mcp.languages.python.environment import make_environment
from codegen_mcp.languages.python.guest_install import install_guest
from codegen_mcp.languages.python.interpreters import InterpreterDiscovery
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import HostIdentity, Sandbox, SandboxSpec
from codegen_mcp.sandbox.bubblewrap import BubblewrapBackend
from codegen_mcp.sandbox.volumes.plain import PlainDriver
from codegen_mcp.sandbox.volumes.space import VolumeConfig

PROGRAMS = sorted((Path(__file__).parent / "fidelity" / "programs").glob("*.py"))
WAYS = ("forked", "fresh", "reference")
FIRST_UID = 240_000 + os.getpid() % 5_000 * len(WAYS)
"""Test runs beside each other have users of their own."""

FRESH = {"MPLBACKEND": "agg"}
"""Read by matplotlib alone, and one of the names that force a fresh interpreter."""
NOT_FRESH = {"MPLBACKENE": "agg"}
"""Something of the same size and order for the other two ways."""

NORMALISED = (
    # Where an object lies is chance, in each process.
    (re.compile(rb"0x[0-9a-f]{6,16}"), b"0xADDRESS"),
    # The variable that forces a fresh interpreter.
    (re.compile(rb"MPLBACKEN[DE]"), b"VARIABLE"),
)

MORE_OUTPUT = {
    "67_exit_without_flush": "what was printed is out at once, so that a kill loses nothing",
    "68_fork_with_unflushed_output": "so is what was printed before a fork",
}
"""Programs whose output differs from the reference on purpose (both ways are alike)."""


@dataclass(frozen=True)
class Case:
    """A program and how it is called."""

    program: Path
    args: tuple[str, ...] = ()
    stdin: bytes = b""

    @property
    def name(self) -> str:
        return " ".join((self.program.stem, *self.args))


def cases() -> Iterator[Case]:
    """One for each ``# args:`` line of each program, or one without."""
    for program in PROGRAMS:
        lines = program.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        found = [match for line in lines if (match := re.fullmatch(r"# (args|stdin): (.*)", line))]
        texts = [match[2] for match in found if match[1] == "stdin"]
        stdin = "".join(texts).encode().decode("unicode_escape").encode("latin-1")
        for args in [match[2] for match in found if match[1] == "args"] or [""]:
            yield Case(program, tuple(args.split()), stdin)


@dataclass(frozen=True)
class Result:
    """What there is to see of a run."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    signal: int
    files: dict[str, tuple[str, bytes]]
    leftovers: int


@dataclass
class ListSink:
    """Keeps everything."""

    data: dict[Stream, bytearray] = field(
        default_factory=lambda: {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    )

    async def write(self, stream: Stream, data: bytes) -> None:
        self.data[stream] += data

    def omit(self, stream: Stream, count: int) -> None:
        raise AssertionError(f"{count} bytes of {stream} were omitted")


class Place:
    """One sandbox and its workspace on the host."""

    def __init__(self, sandbox: Sandbox, workspace: Path, identity: HostIdentity | None) -> None:
        self.sandbox = sandbox
        self.workspace = workspace
        self.identity = identity

    def fill(self, program: Path) -> None:
        """Put the program and what belongs to it into an empty workspace."""
        for old in self.workspace.iterdir():
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        beside = program.with_suffix("")
        if beside.is_dir():
            shutil.copytree(beside, self.workspace, dirs_exist_ok=True)
        shutil.copy(program, self.workspace / "prog.py")
        for path in (self.workspace, *self.workspace.rglob("*")):
            os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
            if self.identity is not None:
                os.lchown(path, self.identity.uid, self.identity.gid)

    def files(self) -> dict[str, tuple[str, bytes]]:
        """Path to (mode, content), directories and bytecode by their names alone."""
        seen = {}
        for path in sorted(self.workspace.rglob("*")):
            status = path.lstat()
            content = b""
            if stat.S_ISREG(status.st_mode) and path.suffix != ".pyc":
                content = normalised(path.read_bytes())
            seen[str(path.relative_to(self.workspace))] = (stat.filemode(status.st_mode), content)
        return seen

    async def run(self, case: Case, way: str) -> Result:
        """Run a program in one of the ways."""
        self.fill(case.program)
        limits = RunLimits(timeout_s=30, output_bytes=64 * MIB)
        reference = Argv(("/venv/bin/python", "prog.py", *case.args))
        command = Command(
            program=reference if way == "reference" else PythonFile("prog.py"),
            limits=limits,
            args=() if way == "reference" else case.args,
            env=FRESH if way == "fresh" else NOT_FRESH,
            stdin=case.stdin,
        )
        sink = ListSink()
        outcome = await self.sandbox.run(command, sink)
        return Result(
            stdout=normalised(bytes(sink.data[Stream.STDOUT])),
            stderr=normalised(bytes(sink.data[Stream.STDERR])),
            exit_code=outcome.exit_code,
            signal=outcome.signal,
            files=self.files(),
            leftovers=outcome.leftovers,
        )


def normalised(data: bytes) -> bytes:
    for pattern, replacement in NORMALISED:
        data = pattern.sub(replacement, data)
    return data


@contextlib.contextmanager
def state_directory() -> Iterator[Path]:
    """A directory that a session's user can pass through (pytest's own is closed)."""
    state = Path(tempfile.mkdtemp(prefix="fidelity-"))
    state.chmod(0o711)
    try:
        yield state
    finally:
        shutil.rmtree(state)


@contextlib.asynccontextmanager
async def booted(
    state: Path, number: int, interpreter: Interpreter, guest: Path
) -> AsyncIterator[Place]:
    """One sandbox over a plain volume."""
    uid = FIRST_UID + number
    identity = HostIdentity(uid=uid, gid=uid) if os.geteuid() == 0 else None
    limits = ResourceLimits(memory_bytes=4 * GIB, disk_bytes=64 * MIB)
    slot = state / f"slot{number}"
    slot.mkdir(mode=0o711)
    volume = await PlainDriver(VolumeConfig(state_directory=state, reserve_bytes=0)).create(
        slot, limits.disk_bytes, identity
    )
    make_environment(interpreter, volume.root / "venv", identity)
    backend = BubblewrapBackend(
        BackendConfig(guest_directory=guest, state=state, interpreter=interpreter)
    )
    sandbox = await backend.create(
        SandboxSpec(
            sandbox_id=f"fidelity-{number}",
            volume=volume,
            interpreter=interpreter,
            limits=limits,
            identity=identity,
            cgroup=None,
        )
    )
    try:
        yield Place(sandbox, volume.root / "workspace", identity)
    finally:
        await sandbox.aclose()
        await volume.detach()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def places() -> AsyncIterator[dict[str, Place]]:
    """A sandbox for each way, so that the three run beside each other."""
    identity = HostIdentity(uid=FIRST_UID, gid=FIRST_UID) if os.geteuid() == 0 else None
    with state_directory() as state:
        explicit = os.environ.get("FIDELITY_PYTHON")
        discovery = InterpreterDiscovery(
            state, identity=identity, explicit=[Path(explicit)] if explicit else []
        )
        interpreter = (await discovery.discover())[0]
        source = Path(codegen_mcp.sandbox.guest.__file__).parent
        guest = install_guest(source, state, [interpreter])
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(discovery.close)
            yield {
                way: await stack.enter_async_context(booted(state, number, interpreter, guest))
                for number, way in enumerate(WAYS)
            }


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
async def test_it_is_as_under_the_interpreter(places: dict[str, Place], case: Case) -> None:
    async with asyncio.timeout(40):
        results = await asyncio.gather(*(places[way].run(case, way) for way in WAYS))
    seen = dict(zip(WAYS, results, strict=True))

    assert seen["forked"] == seen["fresh"]
    if case.program.stem not in MORE_OUTPUT:
        assert seen["forked"] == seen["reference"]
    else:
        assert len(seen["forked"].stdout) != len(seen["reference"].stdout)
        assert seen["forked"].exit_code == seen["reference"].exit_code


CODE = b"""
import sys

print(__name__, sys.argv, sorted(globals()), __spec__, __doc__)


def divide(dividend):
    return dividend / 0


try:
    divide(1)
except ZeroDivisionError as error:
    raise ValueError("caf\xc3\xa9") from error
"""

CODE_OUTPUT = b"""\
__main__ ['-c', 'a', 'b c'] ['__annotations__', '__builtins__', '__doc__', '__loader__', \
'__name__', '__package__', '__spec__', 'sys'] None None
"""

CODE_ERRORS = b"""\
Traceback (most recent call last):
  File "<code>", line 12, in <module>
    divide(1)
  File "<code>", line 8, in divide
    return dividend / 0
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "<code>", line 14, in <module>
    raise ValueError("caf\xc3\xa9") from error
ValueError: caf\xc3\xa9
"""


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("way", ["forked", "fresh"])
async def test_code_is_as_with_option_c_and_its_tracebacks_have_lines(
    places: dict[str, Place], way: str
) -> None:
    sink = ListSink()
    command = Command(
        program=PythonCode(code=CODE),
        limits=RunLimits(timeout_s=30, output_bytes=1 * MIB),
        args=("a", "b c"),
        env=FRESH if way == "fresh" else {},
    )

    outcome = await places[way].sandbox.run(command, sink)

    assert outcome.exit_code == 1
    assert bytes(sink.data[Stream.STDOUT]) == CODE_OUTPUT
    # Since Python 3.11 there are marks below the lines.
    errors = bytes(sink.data[Stream.STDERR]).splitlines(True)
    assert b"".join(line for line in errors if line.strip(b" ~^\n") or line == b"\n") == CODE_ERRORS


@pytest.mark.asyncio(loop_scope="module")
async def test_code_that_misspells_a_name_is_told_the_right_one(places: dict[str, Place]) -> None:
    if await python_version(places["reference"]) < (3, 10):
        pytest.skip("this interpreter makes no suggestions")
    sink = ListSink()
    command = Command(
        program=PythonCode(code=b"number = 1\nprint(nunber)\n"),
        limits=RunLimits(timeout_s=30, output_bytes=1 * MIB),
    )

    await places["forked"].sandbox.run(command, sink)

    assert b"Did you mean: 'number'?" in sink.data[Stream.STDERR]


async def python_version(place: Place) -> tuple[int, ...]:
    sink = ListSink()
    argv = ("python", "-c", "import sys; print(*sys.version_info[:2])")
    limits = RunLimits(timeout_s=30, output_bytes=1 * MIB)
    await place.sandbox.run(Command(program=Argv(argv), limits=limits), sink)
    return tuple(map(int, sink.data[Stream.STDOUT].split()))


def test_there_are_enough_programs() -> None:
    assert len(PROGRAMS) >= 60
