"""./dev bench checkpoint: saving and restoring beside Python's tarfile and GNU tar, in one run.

T6 is ``tarfile`` with zlib level 6, X its extraction; both on a copy of the same tree, on the file
system of the state directory. Cases are interleaved: trust the ratios.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from stats import Samples, Target

from codegen_mcp.bootstrap.engine import Engine, open_engine
from codegen_mcp.bootstrap.serve import settle_memory
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.logs import configure_logging

MIB = 1024 * 1024
SESSION = SessionConfig()
Row = tuple[list[Samples], list[Target]]
T = TypeVar("T")


def source_tree(root: Path, size: int, seed: int = 1) -> None:
    """Sources of this machine's standard library under other names, ``size`` bytes of them."""
    rng = random.Random(seed)
    library = sorted(p for p in Path(os.__file__).parent.glob("*.py"))
    done = number = 0
    while done < size:
        text = rng.choice(library).read_bytes()[: rng.randrange(500, 60_000)]
        path = root / f"pkg{number % 40}" / f"mod{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        done += len(text)
        number += 1


def mixed_tree(root: Path, size: int, seed: int = 2) -> None:
    """Half sources, half data of which a third cannot be packed."""
    source_tree(root / "src", size // 2, seed)
    data_files(root / "data", size // 2, (100_000, 4_000_000), seed)


def data_tree(root: Path, size: int) -> None:
    """A project with its data: 100 MB as ``mixed_tree`` makes it, the rest in larger files."""
    mixed_tree(root, 100 * MIB)
    data_files(root / "large", size - 100 * MIB, (1_000_000, 16_000_000), 3)


def data_files(root: Path, size: int, lengths: tuple[int, int], seed: int) -> None:
    """Data of which a third cannot be packed, in files of these lengths."""
    rng = random.Random(seed)
    left, number = size, 0
    root.mkdir(parents=True)
    while left > 0:
        count = min(left, rng.randrange(*lengths))
        kind = number % 3
        if kind == 0:
            data = rng.randbytes(count)
        elif kind == 1:
            data = (b"%d,%d,some text\n" % (number, count)) * (count // 20)
        else:
            data = b"\0".join(b"%d" % rng.randrange(1000) for _ in range(count // 4))
        (root / f"{number}.bin").write_bytes(data[:count])
        left -= count
        number += 1


def numpy_tree(root: Path) -> None:
    """An environment with numpy, as it lies on disk (a copy of what uv installs)."""
    uv = Path(sys.executable).parent / "uv"
    env = {**os.environ, "UV_LINK_MODE": "copy"}
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, root / "v"], env=env, **quiet)
    target = ["--python", root / "v" / "bin" / "python", "numpy==2.2.6"]
    subprocess.run([uv, "pip", "install", "-q", *target], env=env, **quiet)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


async def clock(work: Awaitable[T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = await work
    return time.perf_counter() - start, result


def pack_t6(tree: Path, target: Path) -> None:
    with tarfile.open(target, "w:gz", compresslevel=6) as archive:
        archive.add(tree, "workspace")
    fd = os.open(target, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive, "r:gz") as opened:
        opened.extractall(target)


def pack_gnu(tree: Path, target: Path) -> None:
    subprocess.run(["tar", "-czf", target, "-C", tree, "."], check=True)


def unpack_gnu(archive: Path, target: Path) -> None:
    target.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", target], check=True)


@contextlib.asynccontextmanager
async def engine(base: Path, keep: int = 3) -> AsyncIterator[Engine]:
    settings = Settings(
        base_workspace=base / "state",
        disk_bytes=3 << 30,
        pool_size=1,
        max_sessions=8,
        max_checkpoints=keep,
        memory_bytes=1 << 30,
        log_level="error",
    )
    async with open_engine(settings, keep_sessions=False) as opened:
        yield opened


def put_tree(opened: Engine, session_id: str, tree: Path) -> Path:
    """Copy a tree into a session's workspace as its user would have made it."""
    session = opened.sessions.session(session_id)
    root = session.slot.volume.root / "workspace"
    shutil.copytree(tree, root, dirs_exist_ok=True, symlinks=True)
    if session.identity is not None:
        for directory, names, files in os.walk(root):
            for name in (*names, *files):
                path = os.path.join(directory, name)
                os.chown(path, session.identity.uid, session.identity.gid, follow_symlinks=False)
    return root


async def one_round(
    opened: Engine,
    session_id: str,
    base: Path,
    number: int,
    files: list[Path],
    sizes: dict[str, int],
) -> dict[str, float]:
    """Each case once; seconds."""
    tree, archive, out = base / "tree", base / "t6.tar.gz", base / "out"
    root = opened.sessions.session(session_id).slot.volume.root / "workspace"
    saves = opened.checkpoints
    row = {"T6": await asyncio.to_thread(timed, lambda: pack_t6(tree, archive))}
    sizes["T6"] = archive.stat().st_size
    row["full save"], info = await clock(saves.save(session_id))
    sizes["full"] = info.size_bytes
    row["X"] = await asyncio.to_thread(timed, lambda: unpack(archive, out))
    shutil.rmtree(out)
    await asyncio.sleep(0.3)  # the pool refills
    restoring = saves.restore(str(info.checkpoint_id), create_new_session=True)
    row["full restore"], restored = await clock(restoring)
    await opened.sessions.destroy(restored.session_id, force=True)
    await opened.sessions.cleaned()
    for path in random.Random(number).sample(files, min(10, len(files))):
        path.write_bytes(b"# changed %d\n" % number + path.read_bytes()[:5000])
    row["10 files"], _ = await clock(saves.save(session_id, incremental=True))
    row["tar|gzip"] = await asyncio.to_thread(timed, lambda: pack_gnu(tree, archive))
    row["tar -xz"] = await asyncio.to_thread(timed, lambda: unpack_gnu(archive, out))
    shutil.rmtree(out)
    copy = ["cp", "-a", str(root), str(out)]
    row["cp -a"] = await asyncio.to_thread(timed, lambda: subprocess.run(copy, check=True))
    shutil.rmtree(out)
    row["fork"], forks = await clock(saves.fork(session_id, 1))
    for one in forks:
        await opened.sessions.destroy(one, force=True)
    await opened.sessions.cleaned()
    return row


async def one_tree(base: Path, label: str, make: Callable[[Path], None], rounds: int) -> Row:
    tree = base / "tree"
    tree.mkdir()
    await asyncio.to_thread(make, tree)
    names = ("T6", "X", "tar|gzip", "tar -xz", "full save", "full restore", "10 files", "cp -a")
    s = {name: Samples(f"{label}: {name}") for name in (*names, "fork")}
    sizes: dict[str, int] = {}
    async with engine(base) as opened:
        view = await opened.sessions.create(SESSION)
        root = await asyncio.to_thread(put_tree, opened, view.session_id, tree)
        files = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
        for number in range(rounds + 1):
            row = await one_round(opened, view.session_id, base, number, files, sizes)
            if number:  # the first is not counted
                for name, value in row.items():
                    s[name].add(value)
    targets = [
        Target(f"{label}: full save / T6", s["full save"].p50 / s["T6"].p50, 0.20),
        Target(f"{label}: size of a full save / T6", sizes["full"] / sizes["T6"], 1.25),
        Target(f"{label}: full restore / X", s["full restore"].p50 / s["X"].p50, 0.35),
        Target(f"{label}: 10 changed files / T6", s["10 files"].p50 / s["T6"].p50, 0.05),
    ]
    if label.startswith("100 MB"):
        limit = 1 / 20 if reflinks(base) else 1 / 3
        targets.append(Target(f"{label}: fork / cp -a", s["fork"].p50 / s["cp -a"].p50, limit))
    return list(s.values()), targets


async def big(base: Path, label: str, make: Callable[[Path, int], None], rounds: int) -> Row:
    """1 MB changed in 1 GB: time, size, and the worker's memory."""
    full, small = Samples(f"{label}: full save"), Samples(f"{label}: 1 MB changed")
    sizes = [0, 1]
    async with engine(base, keep=100) as opened:  # deleting a gigabyte keeps the disk busy
        view = await opened.sessions.create(SESSION)
        root = opened.sessions.session(view.session_id).slot.volume.root / "workspace"
        await asyncio.to_thread(make, root, 1024 * MIB)
        idle = peak_kib(reset=True)
        victim = root / "data" / "0.bin"
        for number in range(rounds):
            took, info = await clock(opened.checkpoints.save(view.session_id))
            full.add(took)
            sizes[0] = info.size_bytes
            with victim.open("r+b") as file:
                file.truncate(1 * MIB)
                file.write(random.Random(number).randbytes(1 * MIB))
            took, info = await clock(opened.checkpoints.save(view.session_id, incremental=True))
            small.add(took)
            sizes[1] = info.size_bytes
        grown = (peak_kib() - idle) / 1024
    return [full, small], [
        Target(f"{label}: time of 1 MB changed / full", small.p50 / full.p50, 1 / 50),
        Target(f"{label}: size of 1 MB changed / full", sizes[1] / sizes[0], 1 / 50),
        Target(f"{label}: memory above idle", grown, 64, "MB"),
    ]


def peak_kib(*, reset: bool = False) -> int:
    """VmHWM of this process, in KiB (proc_pid_status(5)); ``reset`` starts it anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def reflinks(directory: Path) -> bool:
    one, two = directory / "reflink-a", directory / "reflink-b"
    one.write_bytes(b"x" * 4096)
    command = ["cp", "--reflink=always", str(one), str(two)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


async def measure(python: Path) -> tuple[list[Samples], list[Target]]:
    del python
    configure_logging("error")
    settle_memory()  # as the worker does
    n = int(os.environ.get("BENCH_N", "60"))
    samples: list[Samples] = []
    targets: list[Target] = []
    cases = [
        ("10 MB sources", lambda root: source_tree(root, 10 * MIB), max(3, n // 4)),
        ("100 MB mixed", lambda root: mixed_tree(root, 100 * MIB), max(2, n // 20)),
        ("venv with numpy", numpy_tree, max(2, n // 20)),
    ]
    with tempfile.TemporaryDirectory(prefix="codegen-bench-", dir="/var/tmp") as name:
        os.chmod(name, 0o711)
        for label, make, rounds in cases:
            base = Path(name) / label.replace(" ", "-")
            base.mkdir(mode=0o711)
            more, its = await one_tree(base, label, make, rounds)
            samples += more
            targets += its
            shutil.rmtree(base, ignore_errors=True)
        # Looking at each name is the floor of an incremental one: with 1 GB of small files, of
        # which a full one takes little longer, no ratio is promised.
        for label, tree, promised in (
            ("1 GB project with data", data_tree, True),
            ("1 GB of small files and data", mixed_tree, False),
        ):
            base = Path(name) / "big"
            base.mkdir(mode=0o711)
            more, its = await big(base, label, tree, max(2, n // 12 if promised else n // 30))
            samples += more
            targets += [one for one in its if promised or not one.name.endswith("changed / full")]
            shutil.rmtree(base, ignore_errors=True)
    return samples, targets
