"""A process that edits a tree as it is told: what code in a session does to its files.

``TreeEditor`` starts it; ``python -IS tree_editor.py`` is it. It imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

Edit = Sequence[Any]
"""(operation, arguments...); paths are relative to the tree's parent."""


class TreeEditor:
    """One such process; edits are done when ``edit`` returns. A context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def edit(self, directory: Path, edits: Sequence[Edit]) -> None:
        """Do edits one after the other; those that the kernel refuses are left out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(directory), edits]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def __enter__(self) -> TreeEditor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


class _Editor:
    def __init__(self) -> None:
        self.held: list[int] = []
        self.mapped: list[mmap.mmap] = []

    def write(self, path: str, size: int) -> None:
        _write(path, os.O_CREAT | os.O_TRUNC, b"w" * size)

    def append(self, path: str) -> None:
        _write(path, os.O_APPEND, b"a")

    def overwrite(self, path: str, byte: int) -> None:
        """Same size, and mtime set back to what it was."""
        found = os.stat(path)
        _write(path, 0, bytes([byte]) * found.st_size)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    def truncate(self, path: str) -> None:
        os.truncate(path, 1)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode, follow_symlinks=True)

    def touch(self, path: str, seconds: int) -> None:
        os.utime(path, (seconds, seconds), follow_symlinks=False)

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def remove(self, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def fifo(self, path: str) -> None:
        os.mkfifo(path)

    def save(self, path: str, size: int) -> None:
        """As editors do: a temporary file takes the name."""
        self.write(path + ".tmp", size)
        os.replace(path + ".tmp", path)

    def nameless(self, path: str) -> None:
        """Open a file without a name, give it one, and keep it open."""
        directory = os.path.dirname(path)
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o644)
        self.held.append(fd)
        os.link(f"/proc/self/fd/{fd}", path, follow_symlinks=True)

    def hold(self, path: str) -> None:
        """Open a file and keep it open."""
        self.held.append(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK))

    def write_held(self) -> None:
        """Write to all that is held, whatever became of its name."""
        for fd in self.held:
            with contextlib.suppress(OSError):
                os.pwrite(fd, b"held%d" % fd, os.fstat(fd).st_size % 4096)

    def map(self, path: str) -> None:
        """Map a page and close the file."""
        with open(path, "r+b") as file:
            file.truncate(4096)
            mapped = mmap.mmap(file.fileno(), 4096)
        mapped[0] = 1  # the first store is the one that the kernel notes
        self.mapped.append(mapped)

    def store(self, byte: int) -> None:
        """Write to all that is mapped."""
        for mapped in self.mapped:
            mapped[1] = byte

    def unmap(self) -> None:
        """Let go of all that is mapped."""
        while self.mapped:
            self.mapped.pop().close()

    def release(self) -> None:
        """Let go of everything."""
        self.unmap()
        while self.held:
            os.close(self.held.pop())


def _write(path: str, flags: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags, 0o644)  # a FIFO would have us wait
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _main() -> None:
    editor = _Editor()
    for line in sys.stdin:
        directory, edits = json.loads(line)
        os.chdir(directory)
        for name, *arguments in edits:
            with contextlib.suppress(OSError):
                getattr(editor, name)(*arguments)
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
