"""What attacks aim at: a service, sockets, files and shared memory of the host, all ours."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

_IPC_CREAT, _IPC_RMID = 0o1000, 0
_ANYBODY = 0o666


class Decoys:
    """Made when entered, removed when left.

    Args:
        directory: Where files and the socket lie; others may pass through it.
    """

    def __init__(self, directory: Path) -> None:
        self.secret = secrets.token_hex(16)
        self.marker = f"codegen-{secrets.token_hex(8)}"
        self._directory = directory
        self._key = secrets.randbelow(2**30) + 1
        self._closing = contextlib.ExitStack()
        self._port = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            self._listen(opening)
            self._write_files(opening)
            self._share_memory(opening)
            self._closing = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def facts(self) -> dict[str, object]:
        """What attacks are told."""
        return {
            "pid": os.getpid(),
            "port": self._port,
            "secret": self.secret,
            "marker": self.marker,
            "key": self._key,
            "readable": str(self._directory / "readable"),
            "owned": str(self._directory / "readable"),
            "socket": str(self._directory / "socket"),
        }

    def _listen(self, opening: contextlib.ExitStack) -> None:
        service = opening.enter_context(socket.socket(socket.AF_INET))
        service.bind(("127.0.0.1", 0))
        service.listen()
        self._port = service.getsockname()[1]
        with contextlib.suppress(OSError):
            other = opening.enter_context(socket.socket(socket.AF_INET6))
            other.bind(("::1", self._port))
            other.listen()
        for address in (f"\0{self.marker}", str(self._directory / "socket")):
            local = opening.enter_context(socket.socket(socket.AF_UNIX))
            local.bind(address)
            local.listen()
        os.chmod(self._directory / "socket", _ANYBODY)

    def _write_files(self, opening: contextlib.ExitStack) -> None:
        for directory in (self._directory, Path("/dev/shm"), Path("/tmp")):
            path = directory / ("readable" if directory == self._directory else self.marker)
            with contextlib.suppress(OSError):
                path.write_text(self.secret)
                opening.callback(path.unlink, missing_ok=True)
                os.chmod(path, stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH)

    def _share_memory(self, opening: contextlib.ExitStack) -> None:
        """System V memory and a message queue, where this host has them."""
        libc = ctypes.CDLL(None)
        segment = libc.shmget(self._key, 64, _IPC_CREAT | _ANYBODY)
        if segment >= 0:
            opening.callback(libc.shmctl, segment, _IPC_RMID, None)
        with contextlib.suppress(AttributeError):
            name = f"/{self.marker}".encode()
            queue = libc.mq_open(name, os.O_CREAT | os.O_RDWR, _ANYBODY, None)
            if queue >= 0:
                os.close(queue)
                opening.callback(libc.mq_unlink, name)
