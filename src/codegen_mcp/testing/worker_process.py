"""A whole worker in a process of its own, as users start it."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

START_S = 60.0
STOP_S = 30.0
_LISTENING = re.compile(r"listening on (\S+:\d+)")


class WorkerProcess:
    """A worker that serves; ``lines`` is what it has said on standard output so far."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, log: Path) -> None:
        self.process = process
        self.state = state
        self.log = log
        self.lines: list[str] = []
        self.address = ""

    def wait_listening(self) -> None:
        """Wait for the line that names the address.

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
                if match := _LISTENING.search(line):
                    self.address = match[1]
                    return
        raise RuntimeError("".join([*self.lines, self.log.read_text()]) or "it said nothing")

    def stop(self) -> int:
        """Drain it and return its exit code; a worker that does not end in time is killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def worker_process(**settings: str) -> Iterator[WorkerProcess]:
    """Start a worker with these environment variables, and stop it at the end.

    Its state directory is new, reachable by the users of its sessions, and removed at the end.
    """
    base = Path(tempfile.mkdtemp(prefix="codegen-worker-", dir="/var/tmp"))
    base.chmod(0o711)
    state, log = base / "state", base / "log"
    env = {**os.environ, "GRPC_PORT": "0", "BASE_WORKSPACE": str(state), **settings}
    program = "import sys; from codegen_mcp.cli.main import main; sys.exit(main(['worker']))"
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        worker = WorkerProcess(process, state, log)
        try:
            worker.wait_listening()
            yield worker
        finally:
            worker.stop()
            assert process.stdout is not None
            process.stdout.close()
    finally:
        shutil.rmtree(base, ignore_errors=True)
