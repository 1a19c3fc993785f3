"""How often each task has really run, on whichever worker, also where its files are gone.

A task that is watched writes its name and a random word into ``witness`` in its workspace. The
tests hold that file open on the host, so that it can be read after its session was ended; a
session that was restored elsewhere has another one, which is held as well.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self

FILE = "witness"


def watched(name: str, then: str = "") -> str:
    """Code that says that it runs, and goes on with ``then``."""
    return (
        "import os, time\n"
        f"with open({FILE!r}, 'a') as file:\n"
        f"    file.write({name!r} + ' ' + os.urandom(8).hex() + '\\n')\n"
        f"{then}\n"
    )


class Witness:
    """A context manager over the state directories of a fleet, which lie in one place."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._files: dict[tuple[int, int], int] = {}
        self._earlier: frozenset[tuple[int, int]] = frozenset()
        """Files of an earlier drill, whose sessions are just being removed."""

    def __enter__(self) -> Self:
        self.look()  # and keeps them open, so that no later file gets their numbers
        self._earlier = frozenset(self._files)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def look(self) -> int:
        """Take hold of every such file that there is now; how many are held."""
        for directory, names, files in os.walk(self._base):
            names[:] = [name for name in names if name not in ("store", "environment", "env")]
            if FILE not in files:
                continue
            try:
                descriptor = os.open(Path(directory) / FILE, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            facts = os.fstat(descriptor)
            known = self._files.setdefault((facts.st_dev, facts.st_ino), descriptor)
            if known != descriptor:
                os.close(descriptor)
        return len(self._files)

    def runs(self) -> dict[str, int]:
        """How often each task has run; what a checkpoint carried over counts once."""
        self.look()
        words: defaultdict[str, set[str]] = defaultdict(set)
        for file, descriptor in self._files.items():
            if file in self._earlier:
                continue
            size = os.fstat(descriptor).st_size
            for line in os.pread(descriptor, size, 0).decode().splitlines():
                name, _, word = line.partition(" ")
                words[name].add(word)
        return {name: len(found) for name, found in words.items()}
