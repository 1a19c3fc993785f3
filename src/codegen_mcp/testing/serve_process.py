"""``codegen-mcp serve`` in a process of its own, as people start it."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_S = 60.0
STOP_S = 30.0
SERVE = ("-c", "import sys; from codegen_mcp.cli.main import main; sys.exit(main(['serve']))")
MCP = ("-c", "import sys; from codegen_mcp.cli.main import main; sys.exit(main(['mcp']))")
SMALL = {
    "GRPC_PORT": "0",
    "HTTP_PORT": "0",
    "LOG_LEVEL": "warn",
    "POOL_SIZE": "1",
    "MAX_SESSIONS": "16",
    "DISK_BYTES": str(64 * 1024 * 1024),
    "DISK_RESERVE_BYTES": "0",
    "DRAIN_GRACE_S": "2",
}
"""Needs little of the machine."""


@dataclass(slots=True)
class ServeProcess:
    """One that serves."""

    process: subprocess.Popen[bytes]
    state: Path
    log: Path
    url: str = ""
    """Of MCP."""
    address: str = ""
    """Of gRPC."""
    lines: list[str] = field(default_factory=list)
    """What it said when it started."""

    def wait_listening(self) -> None:
        """Wait for the lines that name its addresses.

        Raises:
            RuntimeError: It ended, or said nothing in time; has what it said instead.
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + START_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                line = self.process.stdout.readline().decode()
                if not line:
                    break
                self.lines.append(line)
                if match := re.search(r"gRPC listening on (\S+:\d+)", line):
                    self.address = match[1]
                if match := re.search(r"MCP at ([^\s,]+)", line):
                    self.url = match[1]
                    return
        raise RuntimeError("".join([*self.lines, self.log.read_text()]) or "it said nothing")

    def stop(self) -> int:
        """Drain it and return its exit code; one that does not end in time is killed."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def state_place() -> Iterator[Path]:
    """Yield a path for a state directory that sessions' users can pass through; gone at the end."""
    base = Path(tempfile.mkdtemp(prefix="codegen-serve-", dir="/var/tmp"))
    base.chmod(0o711)
    try:
        yield base / "state"
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def serve_process(program: Sequence[str] = SERVE, **settings: str) -> Iterator[ServeProcess]:
    """Start one with these environment variables, and stop it at the end.

    Args:
        program: Arguments of the interpreter.
        settings: Beside those of ``SMALL``.
    """
    with state_place() as state:
        log = state.with_name("log")
        env = {**os.environ, "BASE_WORKSPACE": str(state), **SMALL, **settings}
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, *program],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        server = ServeProcess(process, state, log)
        try:
            server.wait_listening()
            yield server
        finally:
            server.stop()
            assert process.stdout is not None
            process.stdout.close()
