"""What a run needs on its way to the guest: payload, input and the pipes of its output."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from codegen_mcp.core.task import Argv, Command, PythonCode, PythonFile
from codegen_mcp.sandbox.guest_protocol import (
    INLINE_PAYLOAD,
    encode_payload,
    needs_fresh_interpreter,
)


@dataclass(frozen=True, slots=True)
class OutputEnds:
    """Read ends of a run's output, non-blocking; whoever holds them closes them."""

    stdout: int
    stderr: int


def build_payload(
    command: Command,
    *,
    workspace: str,
    base: Mapping[str, str],
    session: Mapping[str, str],
    rlimits: Mapping[str, int],
) -> bytes:
    """Encode a command.

    Args:
        command: What to run.
        workspace: Where the guest sees the workspace.
        base: Variables that every run has.
        session: Variables of the session, on top; the command's come last.
        rlimits: Name to value.
    """
    own = {**session, **command.env}
    program = command.program
    kind, name, args, code = "exec", "", command.args, b""
    match program:
        case PythonCode():
            kind, name, code = "code", program.filename, program.code
        case PythonFile():
            kind, name = "file", program.path
            if command.cwd:
                name = f"{workspace}/{program.path}"
        case Argv():
            args = program.argv
    return encode_payload(
        kind=kind,
        name=name,
        cwd=f"{workspace}/{command.cwd}" if command.cwd else workspace,
        args=args,
        env={**base, **own},
        limits=rlimits,
        fresh=needs_fresh_interpreter(own),
        code=code,
    )


@contextlib.contextmanager
def open_request(payload: bytes, stdin: bytes) -> Iterator[tuple[bytes, list[int], OutputEnds]]:
    """Yield (inline payload, descriptors to send, ends to read); the former close at the end.

    The read ends are the caller's, unless it leaves by an exception.
    """
    with contextlib.ExitStack() as stack:
        stdout, stdout_end = _pipe(stack)
        stderr, stderr_end = _pipe(stack)
        ends = OutputEnds(stdout, stderr)
        try:
            fds = [stdout_end, stderr_end]
            fds.append(stack.enter_context(_memfd(stdin)) if stdin else _null())
            if len(payload) > INLINE_PAYLOAD:
                fds.append(stack.enter_context(_memfd(payload)))
                payload = b""
            yield payload, fds, ends
        except BaseException:
            os.close(stdout)
            os.close(stderr)
            raise


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, write_end)
    os.set_blocking(read_end, False)
    return read_end, write_end


@contextlib.contextmanager
def _memfd(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("run", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@functools.cache
def _null() -> int:
    """/dev/null, opened once: a read of it ends at once."""
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
