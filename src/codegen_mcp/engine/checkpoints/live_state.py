"""What each name of a session was at its last checkpoint, so that the next reads little again.

The file lies beside the session and is a hint alone: one that is damaged, missing or of another
version costs time, never truth. Which facts prove that a file was not written: the kernel sets
ctime at every change of content, mode, owner, links or mtime, and no call sets it to a wished
value (inode(7), utimensat(2)). It takes the time from a clock that moves by ticks, so that two
changes within a tick can leave the same ctime.

Two things escape ctime: writing through a mapping of a page that was written before (the kernel
notes the first time only, until the page is written back), and a changed clock. Leave out names
of files that ``mapped_writers`` gives while the session stands still: they come out as doubt.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints.scan import Seen
from codegen_mcp.engine.durable import write_file

FORMAT = 1
TICK_NS = 20_000_000
"""Longer than a clock tick of any kernel: HZ is 100 or more, and one tick may be late."""
_MAGIC = b"codegen live state\n"
_LENGTH = struct.Struct("<I")
_STATE = struct.Struct("<QqqQH")
_DIGEST_BYTES = 32
_TIMES = 1 << 63

Verdict = Literal["same", "meta", "doubt", "content"]


class State(NamedTuple):
    """Facts of one name; as ``Seen`` has them."""

    ino: int
    ctime_ns: int
    mtime_ns: int
    size: int
    mode: int

    @classmethod
    def of(cls, seen: Seen) -> State:
        """Keep what a walk found."""
        return cls(seen.ino, seen.ctime_ns, seen.mtime_ns, seen.size, seen.mode)

    def fits(self) -> bool:
        """Whether its times are within 64 bits (the year 2262); tmpfs takes any."""
        return -_TIMES <= self.mtime_ns < _TIMES and -_TIMES <= self.ctime_ns < _TIMES


@dataclass(frozen=True, slots=True)
class LiveState:
    """The states at one checkpoint."""

    checkpoint: str
    """Its id; of any other checkpoint the states say nothing."""
    taken_ns: int
    """Unix nanoseconds by the host's clock, read before the first state was taken."""
    states: Mapping[bytes, State]
    """By path, as in the manifest."""

    def save(self, path: Path) -> None:
        """Replace the file in one step; mode 0600, not durable. Blocks.

        Raises:
            OSError: As ``durable.write_file``.
        """
        states = {path: state for path, state in self.states.items() if state.fits()}
        head = {
            "format": FORMAT,
            "checkpoint": self.checkpoint,
            "taken_ns": self.taken_ns,
            "states": len(states),
        }
        text = json.dumps(head).encode()
        body = b"".join(
            (
                _LENGTH.pack(len(text)),
                text,
                *[_STATE.pack(*state) for state in states.values()],
                b"\0".join(states),
            )
        )
        packed = zlib.compress(body, 1)
        write_file(path, _MAGIC + hashlib.sha256(packed).digest() + packed, durable=False)

    @classmethod
    def load(cls, path: Path) -> LiveState | None:
        """Read what ``save`` wrote; None when it is missing, damaged or of another version."""
        try:
            data = path.read_bytes()
            start = len(_MAGIC) + _DIGEST_BYTES
            packed = data[start:]
            if data[:start] != _MAGIC + hashlib.sha256(packed).digest():
                return None
            return _parse(zlib.decompress(packed))
        except (OSError, ValueError, KeyError, TypeError, struct.error, zlib.error):
            return None


def _parse(body: bytes) -> LiveState | None:
    (length,) = _LENGTH.unpack_from(body)
    at = _LENGTH.size + length
    head = json.loads(body[_LENGTH.size : at])
    if head["format"] != FORMAT:
        return None
    end = at + head["states"] * _STATE.size
    paths = body[end:].split(b"\0") if head["states"] else []
    states = map(State._make, _STATE.iter_unpack(body[at:end]))
    return LiveState(
        str(head["checkpoint"]), int(head["taken_ns"]), dict(zip(paths, states, strict=True))
    )


def changed(
    seen: Seen,
    state: State | None,
    entry: Entry | None,
    taken_ns: int,
    tick_ns: int = TICK_NS,
) -> Verdict:
    """Compare what a walk sees now with the last checkpoint.

    Args:
        seen: Of one name now; its kind is not None.
        state: Of the same name then; None when it is not known.
        entry: Of the same name in that checkpoint's manifest; None when it had none.
        taken_ns: ``LiveState.taken_ns`` of the state.
        tick_ns: How coarse the file system's clock may be.

    Returns:
        ``same``: nothing of it changed. ``meta``: mode or mtime differ from the manifest's, the
        content (or link target) does not. ``doubt``: a file that must be hashed to know.
        ``content``: new, or another kind, size or target.
    """
    if entry is None or entry.kind is not seen.kind:
        return "content"
    if seen.kind is EntryKind.FILE:
        if seen.size != entry.size:
            return "content"
        if (
            state is None
            or seen.ctime_ns >= taken_ns - tick_ns
            or (seen.ino, seen.ctime_ns, seen.mtime_ns, seen.size, seen.mode) != state
        ):
            return "doubt"
    elif seen.target != entry.target:
        return "content"
    if seen.mtime_ns != entry.mtime_ns or seen.mode != entry.mode:
        return "meta"
    return "same"
