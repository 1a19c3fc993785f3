"""Everything of a tree that a copy must have, too."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any


def tree_facts(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Return, by path: kind and mode, time of modification, links, and content or target.

    The paths that are one file's are named with each of them; owners are left out.
    """
    facts: dict[bytes, tuple[Any, ...]] = {}
    inodes: dict[int, list[bytes]] = {}
    top = os.fsencode(root)
    for directory, below, files in os.walk(top):
        for name in (b".", *below, *files):
            if name in below and not os.path.islink(os.path.join(directory, name)):
                continue
            path = os.path.normpath(os.path.join(directory, name))
            found = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(found.st_mode):
                with open(path, "rb") as file:
                    content = found.st_size, hashlib.file_digest(file, "sha256").hexdigest()
                inodes.setdefault(found.st_ino, []).append(os.path.relpath(path, top))
            elif stat.S_ISLNK(found.st_mode):
                content = os.readlink(path)
            relative = os.path.relpath(path, top)
            facts[relative] = found.st_mode, found.st_mtime_ns, content
    for paths in inodes.values():
        for path in paths:
            facts[path] = (*facts[path], tuple(sorted(paths)))
    return facts
