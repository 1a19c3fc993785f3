"""Host users for sessions: leased from a range, one for each session, never by two workers.

The range is cut into blocks; a worker holds the flock of a block's file for as long as it lives,
in a directory that all workers of the host share. The file names the state directory (by token)
that used the block last, so that the next worker there takes the same block again: what still runs
as one of its users was left by its dead predecessor. Sources: user_namespaces(7), subuid(5).
"""

from __future__ import annotations

import fcntl
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.errors import Full, InvalidRequest, Unavailable
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.host_processes import live_uids

BLOCK = 256
LEAST = 1000
"""Below are users of the system."""
MOST = 2**32 - 2
LONGEST = 1_000_000
DIRECTORIES = (Path("/run/codegen-mcp"), Path("/var/lib/codegen-mcp/uids"))
"""The first that can be made is used; every worker of a host must agree on it."""


@dataclass(frozen=True, slots=True)
class UidRange:
    """Uids from ``first`` to ``last``, both included; gids are the same numbers."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> UidRange:
        """Read ``200000-265535``.

        Raises:
            InvalidRequest: It has another form, or contains users of the system.
        """
        match = re.fullmatch(r"\s*(\d{1,10})\s*-\s*(\d{1,10})\s*", text)
        if not match:
            raise InvalidRequest(f"UID_RANGE {text!r} is not valid; use for example 200000-265535")
        first, last = int(match[1]), int(match[2])
        if not LEAST <= first <= last <= min(MOST, first + LONGEST - 1):
            raise InvalidRequest(
                f"UID_RANGE {text!r} is not valid; the first must be at least {LEAST}, the last "
                f"not below it and at most {MOST}, and there may be {LONGEST} between them"
            )
        return cls(first, last)

    def blocks(self) -> Iterator[range]:
        """Cut at multiples of the block size, so that overlapping ranges share block files."""
        start = self.first
        while start <= self.last:
            end = min((start // BLOCK + 1) * BLOCK, self.last + 1)
            yield range(start, end)
            start = end


class UidLeases:
    """The host users of one worker."""

    def __init__(self, uids: UidRange, token: str, directory: Path | None = None) -> None:
        """Check the range against this host; nothing is leased yet.

        Raises:
            Unavailable: No uid of the range can be used here.
        """
        self._token = token
        self._directory = directory or _shared_directory()
        taken = _taken(uids)
        self._usable: dict[int, tuple[int, ...]] = {}
        for block in uids.blocks():
            if usable := tuple(uid for uid in block if uid not in taken):
                self._usable[block.start] = usable
        if not self._usable:
            raise Unavailable(
                f"no uid of UID_RANGE {uids.first}-{uids.last} can be used: they are not mapped "
                "in this user namespace, or belong to users of this host or to /etc/subuid; "
                "name another range"
            )
        self._locks: dict[int, int] = {}
        self._free: deque[int] = deque()
        self._leased: set[int] = set()
        self._resting: list[int] = []

    @property
    def capacity(self) -> int:
        """How many uids of the range can be used here at all."""
        return sum(map(len, self._usable.values()))

    def reclaim(self) -> frozenset[int]:
        """Take the blocks that this state directory's last worker had; return their uids.

        Call it once at start: whatever runs as one of them was left by that worker.
        """
        found: set[int] = set()
        for start in self._usable:
            if self._owner(start) == self._token and self._take(start):
                found.update(self._usable[start])
        return frozenset(found)

    def lease(self, *, own: bool = False) -> HostIdentity:
        """Take a free one. Full when every uid of the range is in use.

        Args:
            own: For the worker itself, which takes some before it adopts sessions: from the other
                end, for those at this one are likely the users of a session's files.
        """
        while not self._free:
            if len(self._resting) >= BLOCK and self._recycle():
                break
            if not (self._take_another() or self._recycle()):
                raise Full(
                    "every host user of UID_RANGE is in use; destroy sessions or widen the range",
                    reason="UIDS_EXHAUSTED",
                    retry_after_s=5.0,
                )
        uid = self._free.pop() if own else self._free.popleft()
        self._leased.add(uid)
        return HostIdentity(uid=uid, gid=uid)

    def claim(self, identity: HostIdentity) -> bool:
        """Take this very one; False when it is leased, another worker's, or not usable here."""
        uid = identity.uid
        start = next((first for first, block in self._usable.items() if uid in block), None)
        if start is None or identity.gid != uid or uid in self._leased:
            return False
        if start not in self._locks and not self._take(start):
            return False
        if uid in self._free:
            self._free.remove(uid)
        else:
            self._resting.remove(uid)
        self._leased.add(uid)
        return True

    async def release(self, identity: HostIdentity) -> None:
        """Give it back; it rests until no process of it is seen, and unused ones go first."""
        if identity.uid in self._leased:
            self._leased.remove(identity.uid)
            self._resting.append(identity.uid)

    def close(self) -> None:
        """Let other workers have the blocks; their files keep the token."""
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._locks.clear()

    def _take_another(self) -> bool:
        """Lock one more block; those that another state directory used last come last."""
        others = [start for start in self._usable if start not in self._locks]
        others.sort(key=lambda start: (self._owner(start) not in (self._token, ""), start))
        return any(self._take(start) for start in others)

    def _take(self, start: int) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._file(start), flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, self._token.encode(), 0)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._locks[start] = descriptor
        alive = live_uids()
        for uid in self._usable[start]:
            (self._resting if uid in alive else self._free).append(uid)
        return True

    def _recycle(self) -> bool:
        """Free what rests and has no process; whether there is anything free now."""
        alive = live_uids()
        self._free.extend(uid for uid in self._resting if uid not in alive)
        self._resting = [uid for uid in self._resting if uid in alive]
        return bool(self._free)

    def _owner(self, start: int) -> str:
        with suppress(FileNotFoundError):
            return self._file(start).read_text()
        return ""

    def _file(self, start: int) -> Path:
        return self._directory / f"uids-{start // BLOCK * BLOCK}"


class OwnUser:
    """For a worker that is not root: sessions run as its own user."""

    def lease(self, *, own: bool = False) -> None:
        """None."""

    def claim(self, identity: HostIdentity) -> bool:
        """Nobody else can be had."""
        return False

    async def release(self, identity: HostIdentity) -> None:
        """Nothing was leased."""


def _shared_directory() -> Path:
    for path in DIRECTORIES:
        with suppress(OSError):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            if os.access(path, os.W_OK) and not path.is_symlink():
                return path
    raise Unavailable(
        f"host users cannot be leased: none of {', '.join(map(str, DIRECTORIES))} can be written "
        "to; make one of them writable for root"
    )


def _taken(uids: UidRange) -> frozenset[int]:
    """Numbers in the range that are not ours to use: not mapped, or of users and containers."""
    candidates = range(uids.first, uids.last + 1)
    unmapped = set(candidates)
    taken: set[int] = set()
    for name in ("uid_map", "gid_map"):
        mapped: set[int] = set()
        for line in Path("/proc/self", name).read_text().splitlines():
            inside, _, count = map(int, line.split())
            mapped.update(_cut(candidates, inside, count))
        taken |= unmapped - mapped
    for name in ("subuid", "subgid"):
        for fields in _colon_file(Path("/etc", name)):
            if fields[1].isdecimal():
                taken.update(_cut(candidates, int(fields[1]), int(fields[2])))
    for name in ("passwd", "group"):
        taken.update(int(fields[2]) for fields in _colon_file(Path("/etc", name)))
    return frozenset(taken)


def _cut(candidates: range, first: int, count: int) -> range:
    return range(max(candidates.start, first), min(candidates.stop, first + count))


def _colon_file(path: Path) -> Iterator[list[str]]:
    """Lines whose third field is a number."""
    with suppress(FileNotFoundError):
        for line in path.read_text(errors="replace").splitlines():
            fields = line.split(":")
            if len(fields) >= 3 and fields[2].isdecimal():
                yield fields
