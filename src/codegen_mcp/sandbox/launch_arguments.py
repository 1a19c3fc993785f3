"""Command lines whose larger parts travel through descriptors."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self


class Arguments:
    """An argument list and the descriptors it names; closes them when left."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def add(self, *words: str | Path | int) -> None:
        """Append words."""
        self.words += [str(word) for word in words]

    def data(self, content: bytes) -> int:
        """Return a descriptor from which the content can be read; owned here."""
        fd = os.memfd_create("data", os.MFD_CLOEXEC)
        self.fds.append(fd)
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def as_descriptor(self) -> int:
        """Return a descriptor with all words so far, as ``--args`` reads them."""
        return self.data(b"".join(os.fsencode(word) + b"\0" for word in self.words))
