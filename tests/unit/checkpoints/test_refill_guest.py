"""The program that refills a sandbox: what it gives back, and what it refuses."""

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints import refill_guest
from codegen_mcp.engine.checkpoints.manifest import Manifest, encode_manifest
from codegen_mcp.engine.checkpoints.refill_program import refill_program
from codegen_mcp.engine.checkpoints.tar_format import END, PADDING, member_header
from codegen_mcp.engine.checkpoints.tree_compare import check_volume, first_difference, walk_volume
from codegen_mcp.testing.archive_rig import directory, fifo, file, hardlink, symlink
from codegen_mcp.testing.refill_rig import (
    SESSION,
    Saved,
    make_volume,
    program_arguments,
    run_program,
    save,
    stream,
)

AWKWARD = [
    b"new\nline",
    b"tab\tand space ",
    b"\xff\xfe invalid utf-8",
    b"-dash",
    b"x" * 255,
    b"\xed\xa0\x80 surrogate",
    "häßlich 😀".encode(),
    b'quote"back\\slash',
    b"...",
    b"\x01\x7f",
]


def make_tree(root: Path) -> None:
    """Make one of everything."""
    work = os.fsencode(root / "workspace")
    for number, name in enumerate(AWKWARD):
        Path(os.fsdecode(work + b"/" + name)).write_bytes(bytes([number]) * number * 700)
        os.mkdir(work + b"/d" + name[:254])
        os.symlink(name, work + b"/l" + name[:254])
    (root / "workspace/empty").mkdir()
    (root / "workspace/zero").touch()
    (root / "workspace/big").write_bytes(os.urandom(3_000_001))
    os.symlink("/etc/passwd", root / "workspace/dangling-or-not")
    os.symlink("t" * 3000, root / "workspace/long-target")
    os.mkfifo(root / "workspace/pipe", 0o620)
    (root / "venv/first").write_text("several names")
    os.link(root / "venv/first", root / "workspace/second")
    os.link(root / "venv/first", root / "venv/third")
    for mode in (0o000, 0o444, 0o4755, 0o2755, 0o1600, 0o7777):
        path = root / f"venv/mode-{mode:o}"
        path.write_bytes(b"mode")
        path.chmod(mode)
        inner = root / f"venv/dir-{mode:o}/in"
        inner.mkdir(parents=True)
        (inner / "file").touch()
        inner.parent.chmod(mode)
    fd = os.open(root / "workspace/holes", os.O_CREAT | os.O_WRONLY)
    os.ftruncate(fd, 5_000_000)
    for at in (0, 1_000_000, 1_004_096, 3_333_333, 4_999_999):
        os.pwrite(fd, b"data", at)
    os.close(fd)
    os.truncate(root / "workspace/zero", 0)
    with open(root / "workspace/only-hole", "wb") as hole:
        hole.truncate(70_000)
    deep = root / "workspace"
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(25):  # deeper than PATH_MAX
        os.mkdir("n" * 200, dir_fd=fd)
        below = os.open("n" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.utime("bottom", ns=(0, 1), dir_fd=fd)
    os.close(fd)
    for number, time_ns in enumerate((0, -1, -1_000_000_001, 1, 2**31 * 10**9 + 7)):
        path = root / f"workspace/time-{number}"
        path.mkdir()
        os.utime(path, ns=(time_ns, time_ns))
        link = root / f"venv/time-{number}"
        link.symlink_to("x")
        os.utime(link, ns=(time_ns, time_ns), follow_symlinks=False)
        os.utime(root / f"venv/mode-{0o444:o}", ns=(time_ns, time_ns))
    os.utime(root / "venv", ns=(5, 123_456_789))


def contents(root: Path, saved: Saved) -> dict[bytes, bytes]:
    """Hash every file of a tree."""
    found = save(root).manifest.entries
    return {one.path: one.sha256 for one in found if one.kind is EntryKind.FILE}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Saved]]:
    root = make_volume(tmp_path_factory.mktemp("tree") / "volume")
    make_tree(root)
    yield root, save(root)
    subprocess.run(["rm", "-rf", root], check=True)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    root = make_volume(tmp_path / "volume")
    yield root
    subprocess.run(["chmod", "-R", "u+rwx", root], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", root], check=True)


def interpreters() -> list[str]:
    """Every Python of 3.8 or later that is installed here, one of each version."""
    found = {sys.version_info[:2]: sys.executable}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(8, 20):
        known = [*pyenv.glob(f"3.{minor}.*/bin/python"), shutil.which(f"python3.{minor}")]
        for path in known:
            if path:
                found.setdefault((3, minor), str(path))
    return list(found.values())


@pytest.mark.parametrize("python", interpreters())
def test_everything_comes_back_on_every_interpreter(
    everything: tuple[Path, Saved], target: Path, python: str
) -> None:
    _, saved = everything
    done = run_program(target, stream(saved.lines, {1: saved.tar}), python=python)
    assert (done.returncode, done.stderr) == (0, b"")
    counts = json.loads(done.stdout)
    assert sum(counts[kind] for kind in "fdlhp") == len(saved.manifest.entries)
    assert first_difference(saved.manifest.entries, walk_volume(target)) == ""


def test_contents_and_holes_come_back(everything: tuple[Path, Saved], target: Path) -> None:
    root, saved = everything
    assert run_program(target, stream(saved.lines, {1: saved.tar})).returncode == 0
    assert contents(target, saved) == contents(root, saved)
    for name in ("holes", "only-hole"):
        before, after = (os.stat(top / "workspace" / name) for top in (root, target))
        assert after.st_blocks <= before.st_blocks < after.st_size / 512
    check_volume(target, saved.manifest.entries)


def test_what_was_there_before_is_gone_however_deep_and_closed_it_is(target: Path) -> None:
    saved = save(target)
    make_tree(target)
    done = run_program(target, stream(saved.lines, {1: saved.tar}))
    assert (done.returncode, done.stderr) == (0, b"")
    check_volume(target, saved.manifest.entries)


def test_a_chain_gives_each_file_from_the_archive_that_has_it(tmp_path: Path, target: Path) -> None:
    root = make_volume(tmp_path / "source")
    for name in ("kept", "changed", "removed"):
        (root / "workspace" / name).write_text(f"{name} in 1")
    (root / "workspace/holes").touch()
    os.truncate(root / "workspace/holes", 100_000)
    first = save(root)
    (root / "workspace/changed").write_text("changed in 2")
    (root / "workspace/removed").unlink()
    (root / "workspace/holes").unlink()
    (root / "workspace/removed").mkdir()
    second = save(root, first)
    (root / "workspace/kept").chmod(0o600)
    os.link(root / "workspace/kept", root / "workspace/linked")
    (root / "venv/new").write_text("new in 3")
    third = save(root, second)
    done = run_program(target, stream(third.lines, {1: first.tar, 2: second.tar, 3: third.tar}))
    assert (done.returncode, done.stderr) == (0, b"")
    check_volume(target, third.manifest.entries)
    assert (target / "workspace/changed").read_text() == "changed in 2"
    assert (target / "workspace/linked").read_text() == "kept in 1"
    assert (target / "venv/new").read_text() == "new in 3"


@pytest.mark.parametrize("maker", ["tarfile", "tar"])
def test_archives_of_other_programs_are_read(tmp_path: Path, target: Path, maker: str) -> None:
    root = make_volume(tmp_path / "source")
    make_tree(root)
    shutil.rmtree(root / "workspace" / ("n" * 200))  # no other program gets down there
    saved = save(root)
    if maker == "tar":
        listed = b"\0".join(one.path for one in saved.manifest.entries)
        done = subprocess.run(
            ["tar", "--format=gnu", "-cS", "--no-recursion", "--null", "-T", "-", "-f", "-"],
            input=listed, cwd=root, capture_output=True, check=True,
        )  # fmt: skip
        tar = done.stdout
    else:
        (root / "workspace/holes").unlink()  # it writes no sparse files
        (root / "workspace/only-hole").unlink()
        saved = save(root)
        names = [os.fsdecode(one.path) for one in saved.manifest.entries]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as writer:
            for name in names:
                writer.add(root / name, name, recursive=False)
        tar = out.getvalue()
    try:
        done = run_program(target, stream(saved.lines, {1: tar}))
        assert (done.returncode, done.stderr) == (0, b"")
        check_volume(target, saved.manifest.entries)
    finally:
        subprocess.run(["rm", "-rf", root], check=True)


def test_other_directories_than_the_expected_ones_are_not_touched(
    tmp_path: Path, target: Path
) -> None:
    saved = save(target)
    other = make_volume(tmp_path / "other")
    (other / "workspace/precious").write_text("kept")
    arguments = program_arguments(target)
    wrong = [*arguments[:2], str(other / "workspace"), str(other / "venv")]
    command = [sys.executable, "-I", "-S", "-c", refill_program()]
    data = stream(saved.lines, {1: saved.tar})
    done = subprocess.run([*command, *wrong], input=data, capture_output=True, check=False)
    assert done.returncode == refill_guest.FAILED
    assert (other / "workspace/precious").read_text() == "kept"
    done = subprocess.run(
        [*command, *wrong, *arguments[2:]], input=data, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert (other / "workspace/precious").read_text() == "kept"


# Hostile input. A tree of one directory, one file, one link, each with its header.

D, F = directory(b"workspace/d"), file(b"workspace/d/f", b"content")
L = symlink(b"workspace/d/l", b"/etc")
ROOTS = [directory(b"workspace"), directory(b"venv")]


def lines_of(*entries: Entry, number: int = 1) -> bytes:
    manifest = Manifest(f"{SESSION}.1.{number}", 0, (*ROOTS, *entries))
    return gzip.decompress(encode_manifest(manifest))


def line(*fields: object) -> bytes:
    """A manifest line as it should not be, after those of the roots."""
    head, *rest = lines_of().splitlines(keepends=True)
    told = json.loads(head)
    told["entries"] += 1
    return b"".join((json.dumps(told).encode(), b"\n", *rest, json.dumps(fields).encode(), b"\n"))


def tar_of(*entries: Entry, content: bytes = b"content", end: bytes = END) -> bytes:
    parts = []
    for entry in entries:
        parts.append(member_header(entry))
        if entry.kind is EntryKind.FILE:
            data = content[: entry.size]
            parts += [data, PADDING[len(data) % 512]]
    return b"".join(parts) + end


def again(header: bytes) -> bytes:
    """Correct a header's checksum."""
    total = sum(header[:148]) + sum(header[156:512]) + 8 * 32
    return header[:148] + b"%06o\0 " % total + header[156:]


def patched(at: int, data: bytes, entry: Entry = F) -> bytes:
    """A tar of D and an entry whose header has other bytes at a place."""
    tar = tar_of(D)[: -len(END)]
    own = tar_of(entry)
    return tar + again(own[:at] + data + own[at + len(data) :])


def sparse(*numbers: int, stored: int = 0, size: int = 4096) -> bytes:
    entry = Entry(b"workspace/d/f", EntryKind.FILE, 0o644, 0, size, b"", b"", 1, sparse=True)
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    header = member_header(entry, pairs)
    if stored:
        header = again(header[:124] + b"%011o\0" % stored + header[136:])
    return tar_of(D)[: -len(END)] + header + bytes(4096) + END


HOLES = replace(file(b"workspace/d/f", bytes(4096)), sparse=True)
LONG = replace(F, size=0o777777777)
SHA = hashlib.sha256(b"content").hexdigest()
GOOD = (lines_of(D, F, L), tar_of(D, F, L))
Case = Callable[[], tuple[bytes, bytes]]
HOSTILE: dict[str, tuple[bytes, bytes]] = {
    "unknown type": (lines_of(D, F), patched(156, b"3")),
    "a device": (lines_of(D, F), patched(156, b"4")),
    "a pax header": (lines_of(D, F), patched(156, b"x")),
    "wrong checksum": (lines_of(D, F), tar_of(D, F).replace(b"0000644", b"0000645")),
    "no number": (lines_of(D, F), patched(124, b"0000000000x\0")),
    "negative size": (lines_of(D, F), patched(124, b"\xff" * 12)),
    "size above the end": (lines_of(D, LONG), patched(124, b"00777777777\0")),
    "huge size": (lines_of(D, F), patched(124, b"\x80" + b"\xff" * 11)),
    "other size": (lines_of(D, replace(F, size=6)), tar_of(D, F)),
    "other content": (lines_of(D, F), tar_of(D, F, content=b"CONTENT")),
    "posix magic": (lines_of(D, F), patched(257, b"ustar\x0000")),
    "absolute member": (lines_of(D, F), patched(0, b"/etc/x\0\0\0\0\0\0\0")),
    "member with ..": (lines_of(D, F), patched(0, b"workspace/../..\0")),
    "member through a link": (
        lines_of(D, F, L),
        tar_of(D, F, L, replace(F, path=b"workspace/d/l/x")),
    ),
    "member not in the manifest": (lines_of(D, F), tar_of(D, F, replace(F, path=b"workspace/x"))),
    "member twice": (lines_of(D, F), tar_of(D, F, F)),
    "link for a file": (lines_of(D, F), tar_of(D, symlink(F.path, b"/etc"))),
    "file for a directory": (lines_of(D, F), tar_of(replace(F, path=D.path), F)),
    "other link target": (lines_of(D, F, L), tar_of(D, F, symlink(L.path, b"/root"))),
    "link with bytes": (lines_of(D, F, L), tar_of(D, F)[: -len(END)] + again(
        member_header(L)[:124] + b"00000000007\0" + member_header(L)[136:]
    ) + bytes(512) + END),
    "file missing": (lines_of(D, F), tar_of(D)),
    "no end": (lines_of(D, F), tar_of(D, F, end=b"")),
    "half an end": (lines_of(D, F), tar_of(D, F, end=bytes(512))),
    "half an end, and more": (lines_of(D, F), tar_of(D, F, end=bytes(512) + b"x" * 512)),
    "bytes after the end": (lines_of(D, F), tar_of(D, F) + b"more".ljust(512, b"\0")),
    "long name twice": (
        lines_of(D, F),
        member_header(replace(F, path=b"workspace/" + b"x" * 200))[:1024] * 2 + tar_of(D, F),
    ),
    "long name too long": (lines_of(D, F), again(
        b"././@LongLink".ljust(124, b"\0") + b"77777777777\0" + bytes(20) + b"L" + bytes(100)
        + b"ustar  \0" + bytes(247)
    ) + tar_of(D, F)),
    "long name before nothing": (
        lines_of(D, F),
        tar_of(D, F)[: -len(END)] + member_header(replace(F, path=b"w" * 200))[:1024] + END,
    ),
    "map out of order": (lines_of(D, HOLES), sparse(1024, 512, 0, 512, stored=1024)),
    "map that overlaps": (lines_of(D, HOLES), sparse(0, 1024, 512, 512, stored=1536)),
    "map beyond the end": (lines_of(D, HOLES), sparse(4096, 512, stored=512)),
    "map for other data": (lines_of(D, HOLES), sparse(0, 512, stored=1024)),
    "sparse of another size": (lines_of(D, HOLES), sparse(0, 512, 8192, 0, size=8192)),
    "manifest: ..": (line("workspace/../x", "f", 0o644, 0, 0, SHA, 1), GOOD[1]),
    "manifest: absolute": (line("/etc/x", "d", 0o755, 0), GOOD[1]),
    "manifest: other root": (line("home", "d", 0o755, 0), GOOD[1]),
    "manifest: empty part": (line("workspace//x", "d", 0o755, 0), GOOD[1]),
    "manifest: NUL": (line("workspace/a\0b", "d", 0o755, 0), GOOD[1]),
    "manifest: long part": (line("workspace/" + "x" * 256, "d", 0o755, 0), GOOD[1]),
    "manifest: twice": (line("workspace", "d", 0o755, 0), GOOD[1]),
    "manifest: in no directory": (line("workspace/x/y", "d", 0o755, 0), GOOD[1]),
    "manifest: below a link": (lines_of(L, F), GOOD[1]),
    "manifest: device": (line("workspace/x", "c", 0o755, 0), GOOD[1]),
    "manifest: mode": (line("workspace/x", "d", 0o10000, 0), GOOD[1]),
    "manifest: time": (line("workspace/x", "l", 0o777, 10**40, "y"), GOOD[1]),
    "manifest: link to a link": (line("workspace/x", "h", 0o644, 0, "workspace/d"), GOOD[1]),
    "manifest: sha256": (line("workspace/x", "f", 0o644, 0, 1, "abc", 1), GOOD[1]),
    "manifest: source": (lines_of(D, replace(F, source=7)), GOOD[1]),
    "manifest: no UTF-8": (line("workspace/\ud800", "d", 0o755, 0), GOOD[1]),
    "manifest: nested": (lines_of()[:-1] + b"[" * 100_000 + b"\n", GOOD[1]),
    "manifest: no text": (b"\x80\n", GOOD[1]),
    "manifest: empty": (b"", GOOD[1]),
    "manifest: of another": (lines_of(D, F, L, number=2), GOOD[1]),
}  # fmt: skip

WORDS = {
    "unknown type": "unknown type",
    "a device": "unknown type",
    "a pax header": "unknown type",
    "wrong checksum": "checksum",
    "no number": "no number",
    "negative size": "no number",
    "size above the end": "beyond the end",
    "huge size": "size",
    "other size": "another size",
    "other content": "sha256",
    "posix magic": "not GNU",
    "absolute member": "absolute",
    "member with ..": "'..'",
    "member through a link": "not in the manifest",
    "member not in the manifest": "not in the manifest",
    "member twice": "twice",
    "link for a file": "not what",
    "file for a directory": "not what",
    "other link target": "target",
    "link with bytes": "has bytes",
    "file missing": "no archive has",
    "no end": "beyond the end",
    "half an end": "half an end",
    "half an end, and more": "after the end",
    "bytes after the end": "after the end",
    "long name twice": "long name",
    "long name too long": "long name",
    "long name before nothing": "GNU",
    "map out of order": "in order",
    "map that overlaps": "in order",
    "map beyond the end": "in order",
    "map for other data": "does not fit",
    "sparse of another size": "another size",
    "manifest: ..": "'..'",
    "manifest: absolute": "absolute",
    "manifest: other root": "neither",
    "manifest: empty part": "empty",
    "manifest: NUL": "NUL",
    "manifest: long part": "too long",
    "manifest: twice": "twice",
    "manifest: in no directory": "no directory",
    "manifest: below a link": "no directory",
    "manifest: device": "unknown kind",
    "manifest: mode": "out of range",
    "manifest: time": "time",
    "manifest: link to a link": "no file before",
    "manifest: sha256": "sha256",
    "manifest: source": "what the manifest",
    "manifest: no UTF-8": "no text",
    "manifest: nested": "JSON",
    "manifest: no text": "JSON",
    "manifest: empty": "cut off",
    "manifest: of another": "not the one",
}


def test_the_harmless_form_of_the_hostile_cases_is_taken(target: Path) -> None:
    done = run_program(target, stream(GOOD[0], {1: GOOD[1]}))
    assert (done.returncode, done.stderr) == (0, b"")
    check_volume(target, [*ROOTS, D, F, L])


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_input_is_refused_and_touches_nothing_else(
    target: Path, tmp_path: Path, case: str
) -> None:
    lines, tar = HOSTILE[case]
    done = run_program(target, stream(lines, {1: tar}))
    assert done.returncode == refill_guest.CORRUPT, done.stderr
    told = json.loads(done.stderr)
    assert done.stderr.count(b"\n") == 1
    assert WORDS[case] in told["error"]
    assert "Traceback" not in told["error"]
    assert os.listdir(tmp_path) == ["volume"]
    assert sorted(os.listdir(target)) == ["venv", "workspace"]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.99])
def test_input_that_is_cut_off_is_refused(target: Path, part: float) -> None:
    data = stream(GOOD[0], {1: GOOD[1]})
    done = run_program(target, data[: int(len(data) * part)])
    assert done.returncode == refill_guest.CORRUPT
    assert json.loads(done.stderr)["error"]


def test_bytes_after_the_last_archive_are_refused(target: Path) -> None:
    done = run_program(target, stream(GOOD[0], {1: GOOD[1]}) + bytes(512))
    assert done.returncode == refill_guest.CORRUPT
    assert b"after the last archive" in done.stderr


def test_a_deep_tree_needs_few_descriptors_and_no_recursion(target: Path) -> None:
    depth = 1500
    paths = [b"workspace" + b"/d" * number for number in range(1, depth)]
    entries = [directory(path, 0o500) for path in paths]
    entries += [file(paths[-1] + b"/f", b"content"), fifo(paths[-1] + b"/p")]
    entries.append(hardlink(paths[700] + b"/h", paths[-1] + b"/f"))
    data = stream(lines_of(*entries), {1: tar_of(*ROOTS, *entries)})
    done = run_program(target, data, prefix=["prlimit", "--nofile=200"])
    assert (done.returncode, done.stderr) == (0, b"")
    check_volume(target, [*ROOTS, *entries])
    assert stat.S_IMODE(os.stat(target / "workspace/d").st_mode) == 0o500
