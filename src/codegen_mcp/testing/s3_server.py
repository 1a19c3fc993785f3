"""A real S3 server for tests: OpenStack Swift with its S3 interface, on loopback, in one process.

It checks signatures, expiry and checksums, and heeds ``If-None-Match: *`` for whole and for
multipart uploads. One serves a whole run of tests: see ``shared_s3_server``.
"""

from __future__ import annotations

import fcntl
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from codegen_mcp.testing import s3_process

START_S = 60.0
_LISTENING = re.compile(rb"listening on (\d+)\n")


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running one, with one bucket."""

    endpoint: str
    """``http://127.0.0.1:port``."""

    bucket: str = s3_process.BUCKET

    def new_url(self) -> str:
        """``s3://bucket/prefix`` with a prefix that nobody else has."""
        return f"s3://{self.bucket}/{uuid4().hex}"

    def environ(self, endpoint: str = "") -> dict[str, str]:
        """Environment variables that lead to it, or by way of another ``endpoint``."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": s3_process.ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": s3_process.SECRET_ACCESS_KEY,
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start one; at the end nothing is left. It dies with this process in any case.

    Raises:
        RuntimeError: It did not start; has what it said.
    """
    # Swift needs user xattrs, which older kernels' tmpfs has not.
    base = Path(tempfile.mkdtemp(prefix="codegen-s3-", dir="/var/tmp"))
    log = base / "log"
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", s3_process.__file__, base, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        try:
            yield S3Server(f"http://127.0.0.1:{_port(process, log)}")
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    finally:
        shutil.rmtree(base)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(START_S) else b""
    if match := _LISTENING.fullmatch(line):
        return int(match[1])
    raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}")


@contextmanager
def shared_s3_server(directory: Path) -> Iterator[S3Server]:
    """Use the one that another process of this test run started, or start it for all.

    ``directory`` is the run's own. Users hold a lock; who started it waits for it at the end.
    """
    address, starting, using = (directory / f"s3-{name}" for name in ("address", "start", "users"))
    with ExitStack() as stack:
        users = stack.enter_context(using.open("a"))
        with starting.open("a") as start:
            fcntl.flock(start, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)
            started = not address.exists()
            if started:
                server = stack.enter_context(s3_server())
                address.write_text(server.endpoint)
        try:
            yield S3Server(address.read_text())
        finally:
            if started:
                fcntl.flock(users, fcntl.LOCK_UN)
                with starting.open("a") as start:
                    fcntl.flock(start, fcntl.LOCK_EX)
                    fcntl.flock(users, fcntl.LOCK_EX)
                    address.unlink()
