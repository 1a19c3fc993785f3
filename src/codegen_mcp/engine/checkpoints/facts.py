"""What is told of a checkpoint beside its bytes: changed files and installed packages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from codegen_mcp.core.checkpoint import Entry, EntryKind

SHOWN = 1000
"""Paths that are listed; more are counted."""
SHOWN_BYTES = 256 * 1024
"""Text of these, and of the packages: code chooses both, and every list of checkpoints has them."""
_DIST_INFO = re.compile(rb"venv/lib/[^/]+/site-packages/([^/]+)-([^/-]+)\.dist-info")


def changed_paths(before: Sequence[Entry], now: Sequence[Entry]) -> tuple[list[bytes], list[bytes]]:
    """(changed or new, removed) names; directories count by their mode only.

    Times of directories change with what is in them, which is listed itself.
    """
    old = {entry.path: entry for entry in before}
    changed = []
    for entry in now:
        known = old.pop(entry.path, None)
        if known is None or _facts(known) != _facts(entry):
            changed.append(entry.path)
    return changed, list(old)


def shown_paths(paths: Sequence[bytes]) -> tuple[tuple[str, ...], int]:
    """(paths of the workspace for people, without its name, at most SHOWN; how many there are)."""
    prefix = b"workspace/"
    mine = [path[len(prefix) :] for path in paths if path.startswith(prefix)]
    return _fitting(path.decode("utf-8", "backslashreplace") for path in mine[:SHOWN]), len(mine)


def installed_packages(entries: Sequence[Entry]) -> tuple[str, ...]:
    """``name==version`` of each distribution in the environment, sorted; the first that fit.

    From the names of the directories that record them (packaging.python.org, "Recording installed
    projects"): what is in them is the session's.
    """
    found = set()
    for entry in entries:
        if entry.kind is EntryKind.DIRECTORY and (match := _DIST_INFO.fullmatch(entry.path)):
            name, version = (part.decode("utf-8", "backslashreplace") for part in match.groups())
            found.add(f"{name}=={version}")
    return _fitting(sorted(found))


def _fitting(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the first of them, as many as fit into SHOWN_BYTES."""
    kept, room = [], SHOWN_BYTES
    for text in texts:
        room -= len(text.encode())
        if room < 0:
            break
        kept.append(text)
    return tuple(kept)


def _facts(entry: Entry) -> tuple[object, ...]:
    if entry.kind is EntryKind.DIRECTORY:
        return entry.kind, entry.mode
    return entry.kind, entry.mode, entry.mtime_ns, entry.size, entry.sha256, entry.target
