"""What an idle session costs: memory (PSS of all its processes) and disk."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import cases
from processes import worker
from stats import Samples, Target

from codegen_mcp.client.connection import Connection

SESSIONS = 20


def descendants(root: int) -> list[int]:
    """Pids below a process, itself not included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        for child in children.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found


def is_sandbox(pid: int) -> bool:
    """Whether a process is a sandbox's launcher, guest or spare (not the worker itself)."""
    try:
        return b"/run/codegen/guest/main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def pss_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def tree_bytes(path: Path) -> int:
    """Bytes on disk below a directory, on its own file system only."""
    device = path.stat().st_dev
    total = 0
    for directory, names, files in os.walk(path):
        here = Path(directory)
        names[:] = [n for n in names if (here / n).lstat().st_dev == device]
        total += sum((here / n).lstat().st_blocks * 512 for n in [*names, *files])
    return total


async def one(volume: str) -> tuple[float, float]:
    """Return mean PSS in MB and mean disk in KB of 20 idle sessions on one kind of volume."""
    settings = {"VOLUME": volume, "POOL_SIZE": "0", "DISK_BYTES": str(64 * 1024 * 1024)}
    async with worker(**settings) as (address, state), Connection(address) as w:
        sessions = [await cases.create(w) for _ in range(SESSIONS)]
        for session in sessions:
            await cases.execute(w, cases.run(session))
        await asyncio.sleep(1)
        inside = [pid for pid in descendants(os.getpid()) if is_sandbox(pid)]
        memory = sum(map(pss_kib, inside)) / SESSIONS / 1024
        print(f"  {volume}: {len(inside) / SESSIONS:.1f} processes a session")
        disk = sum(disk_bytes(state / "sessions" / s) for s in sessions) / SESSIONS / 1024
        for session in sessions:
            await cases.destroy(w, session)
    return memory, disk


def disk_bytes(directory: Path) -> int:
    """What was really written for a session: a reserved image counts its written extents."""
    image = directory / "volume.img"
    if not image.exists():
        return tree_bytes(directory)
    rest = sum(p.lstat().st_blocks * 512 for p in directory.iterdir() if p != image)
    return rest + written_bytes(image)


def written_bytes(image: Path) -> int:
    """Sum the extents of a file that are not merely reserved (FIEMAP, fiemap.rst)."""
    import fcntl
    import struct

    unwritten, last, room = 0x800, 0x1, 512
    with image.open("rb") as file:
        size, start, total = image.stat().st_size, 0, 0
        while start < size:
            head = struct.pack("=QQLLLL", start, size - start, 1, 0, room, 0)
            buffer = bytearray(head + bytes(56 * room))
            fcntl.ioctl(file, 0xC020660B, buffer)
            count = struct.unpack_from("=QQLLLL", buffer)[3]
            if not count:
                break
            for index in range(count):
                logical, _, length, _, _, flags = struct.unpack_from(
                    "=QQQQQL", buffer, 32 + 56 * index
                )
                total += 0 if flags & unwritten else length
                start = logical + length
                if flags & last:
                    return total
    return total


async def measure(_: Path) -> tuple[list[Samples], list[Target]]:
    targets = []
    kinds = [("plain", 64.0)] + ([("loop", 512.0)] if os.geteuid() == 0 else [])
    for volume, bound in kinds:
        memory, disk = await one(volume)
        targets.append(Target(f"idle session, PSS ({volume} volume)", memory, 6.0, "MB"))
        targets.append(Target(f"idle session, disk ({volume} volume)", disk, bound, "KB"))
    return [], targets
