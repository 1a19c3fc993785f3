"""What a run needs on its way to the guest: payload, input and the pipes of its output."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

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


class RunRequest:
    """A run's descriptors. Leaving it closes those that are sent, and by an exception all.

    A standard input that the caller opened is sent as well, and never closed.
    """

    __slots__ = ("_own", "ends", "fds", "payload")

    def __init__(self, payload: bytes, stdin: bytes, stdin_fd: int | None = None) -> None:
        """Open them.

        Args:
            payload: Sent as it is, or in a file when it is long.
            stdin: What the run reads; nothing is /dev/null.
            stdin_fd: Read instead; the caller's.
        """
        self._own: list[int] = []
        self.payload = payload
        """To be sent inline; empty when it lies in the fourth descriptor."""
        self.fds: list[int] = []
        """To be sent."""
        read: list[int] = []
        try:
            for _ in ("stdout", "stderr"):
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                read.append(read_end)
                self._own.append(write_end)
                os.set_blocking(read_end, False)
            self.ends = OutputEnds(*read)
            self.fds += self._own
            if stdin_fd is None:
                stdin_fd = self._memfd(stdin) if stdin else _null()
            self.fds.append(stdin_fd)
            if len(payload) > INLINE_PAYLOAD:
                self.fds.append(self._memfd(payload))
                self.payload = b""
        except BaseException:
            for fd in self._own + read:
                os.close(fd)
            raise

    def __enter__(self) -> RunRequest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for fd in self._own:
            os.close(fd)
        if kind is not None:
            os.close(self.ends.stdout)
            os.close(self.ends.stderr)

    def _memfd(self, data: bytes) -> int:
        fd = os.memfd_create("run", os.MFD_CLOEXEC)
        self._own.append(fd)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return fd


@functools.cache
def _null() -> int:
    """/dev/null, opened once: a read of it ends at once."""
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
