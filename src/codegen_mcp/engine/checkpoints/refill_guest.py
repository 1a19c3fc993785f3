"""Runs inside a new sandbox: empties its directories and fills them from a checkpoint's bytes.

Standard library only, Python 3.8 or later, started with ``-I -S -c`` (``refill_program``). Standard
input is one line ``{"format": 1, "manifest_bytes": N, "archives": [{"number": n, "bytes": count},
...]}``, then N bytes of manifest lines, then the tar of each archive, oldest first, all inflated.
The arguments are ``device:inode`` of the workspace and of the environment, then pairs of paths: the
first pair that is these two directories is used, so that nothing else is ever emptied.

A file is taken from the archive that the manifest names, and from there only; names, modes and
times are the manifest's. Success is one line of JSON on standard output and exit code 0. Else
there is ``{"error": ..., "where": ...}`` on standard error, and the exit code says whose fault it
is: CORRUPT, NO_SPACE, or FAILED for what is neither. The tree is then half made; the caller drops
the whole slot.

json and hashlib are not imported where their parts in C can be had: json brings ``re`` along, and
each takes as long as the start of an interpreter.
"""

from __future__ import annotations

import errno
import os
import sys

from codegen_mcp.engine.checkpoints.refill_guest_input import (
    BLOCK,
    LINE_BYTES,
    PIECE,
    Input,
    Refused,
)
from codegen_mcp.engine.checkpoints.refill_guest_manifest import ROOTS, Manifest, Node, check_path
from codegen_mcp.engine.checkpoints.refill_guest_places import Place, empty, open_roots, set_time
from codegen_mcp.engine.checkpoints.refill_guest_tar import KINDS, Member

try:
    from _hashlib import openssl_sha256 as sha256
except ImportError:
    from hashlib import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CORRUPT = 3
NO_SPACE = 4
FAILED = 5

ACROSS = "a file has names in both workspace and venv, which are two mounts in this sandbox"
EMPTY = bytes(BLOCK)
HOLE = 4096
"""The shortest hole: a block of the file system."""
MANY = 8192
"""Segments of a file from which on the writer of the archive may have joined some: it lists fewer
than twice as many, with the holes between them as zeros."""
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Refill:
    """The whole work."""

    def __init__(self, source: Input, roots: dict[bytes, int]) -> None:
        self.source = source
        self.roots = roots
        self.place = Place(roots)
        self.where = b""
        """What is worked on, for errors."""
        self.counts = dict.fromkeys("fdlhp", 0)
        self.bytes = 0

    def run(self) -> None:
        """Do it all."""
        source = self.source
        source.left = LINE_BYTES
        head = source.line("the first line")
        try:
            archives = [(one["number"], one["bytes"]) for one in head["archives"]]
            count, known = head["manifest_bytes"], head["format"] == 1
            numbers = [one for one, _ in archives]
            fine = known and numbers and numbers == sorted(set(numbers)) and numbers[0] > 0
        except (TypeError, KeyError, AttributeError):
            fine = False
        if not fine:
            raise Refused("the first line is not what this program reads", b"")
        source.left = count
        self.manifest = Manifest(source)
        self.nodes = self.manifest.nodes
        if self.manifest.checkpoint != str(numbers[-1]):
            raise Refused("the last archive is not the one of the manifest", b"")
        for root in ROOTS:
            self.where = root
            empty(self.roots[root])
        self.make_names()
        for name, length in archives:
            source.left = length
            self.read_archive(name, name == numbers[-1])
        if source.file.read(1):
            raise Refused("there are bytes after the last archive", b"")
        for path, node in self.nodes.items():
            if node.kind == "f" and not node.done:
                raise Refused("no archive has the bytes of a file", path)
        self.link_files()
        self.finish_directories()

    def make_names(self) -> None:
        """Make what has no bytes: directories (open to us until the end), links, FIFOs."""
        for path, node in self.nodes.items():
            if node.kind in "fh" or path in ROOTS:
                continue
            self.where = path
            parent, name = self.place.of(path)
            if node.kind == "d":
                os.mkdir(name, 0o700, dir_fd=parent)
                continue
            if node.kind == "l":
                os.symlink(node.target, name, dir_fd=parent)
            else:
                os.mkfifo(name, node.mode & 0o777, dir_fd=parent)
                if node.mode & 0o7000:
                    os.chmod(name, node.mode, dir_fd=parent)
            set_time(name, node, parent)
            self.counts[node.kind] += 1

    def read_archive(self, number: int, newest: bool) -> None:
        """Take the files that the manifest wants from one archive."""
        source, nodes = self.source, self.nodes
        while True:
            header = source.take(BLOCK, b"")
            if header == EMPTY:
                break
            member = Member(source, header)
            self.where = path = member.name
            node = nodes.get(path)
            if node is None:
                check_path(path)
                if newest:
                    raise Refused("a member is not in the manifest", path)
            elif node.seen == number:
                raise Refused("a member is there twice", path)
            else:
                node.seen = number
                if newest:
                    self.compare(member, node, number)
            if node is not None and node.source == number:
                self.write(member, node)
                continue
            if member.type == b"S":
                member.segments(source)
            source.skip(member.size + -member.size % BLOCK, path)
        self.where = b""
        if source.left < BLOCK:
            raise Refused("an archive has but half an end", b"")
        for rest in source.pieces(source.left, b""):
            if rest.count(0) != len(rest):
                raise Refused("there are bytes after the end of an archive", b"")

    def compare(self, member: Member, node: Node, number: int) -> None:
        """Refuse a member of the manifest's own archive that is not what the manifest says."""
        if KINDS[member.type] != node.kind or (node.kind == "f" and node.source != number):
            raise Refused("a member is not what the manifest says", member.name)
        if node.target != (b"" if node.kind == "f" else member.link):
            raise Refused("a link has another target than in the manifest", member.name)

    def write(self, member: Member, node: Node) -> None:
        """Write one file as its archive has it."""
        path, data = member.name, member.size
        if KINDS[member.type] != "f":
            raise Refused("a member is not what the manifest says", path)
        length, segments = data, [(0, data)] if data else []
        if member.type == b"S":
            length, segments = member.segments(self.source)
        if length != node.size:
            raise Refused("a file has another size than in the manifest", path)
        parent, name = self.place.of(path)
        fd = os.open(name, CREATE, node.mode & 0o777, dir_fd=parent)
        try:
            hashed = self.fill(fd, length, segments, path)
            if hashed != node.sha256:
                raise Refused("a file has another sha256 than in the manifest", path)
            if node.mode & 0o7000:
                os.fchmod(fd, node.mode)  # after the writes, which clear the bits
            set_time(fd, node)
        finally:
            os.close(fd)
        node.done = True
        self.counts["f"] += 1
        self.bytes += length

    def fill(
        self,
        fd: int,
        length: int,
        segments: list[tuple[int, int]],
        path: bytes,
    ) -> bytes:
        """Write the data and return the sha256 of the file with its holes."""
        source, hashed, at = self.source, sha256(), 0
        taken = 0
        for offset, count in segments:
            if offset > at:
                hash_hole(hashed, offset - at)
                os.lseek(fd, offset, os.SEEK_SET)
            for piece in source.pieces(count, path):
                hashed.update(piece)
                if len(segments) >= MANY:
                    write_data(fd, piece)
                else:
                    write(fd, piece)
            at = offset + count
            taken += count
        source.take(-taken % BLOCK, path)
        if length > at:
            hash_hole(hashed, length - at)
        if length > at or len(segments) >= MANY:
            os.ftruncate(fd, length)
        return hashed.digest()

    def link_files(self) -> None:
        """Make the further names of files."""
        first = Place(self.roots)
        for path, node in self.nodes.items():
            if node.kind == "h":
                self.where = path
                old_parent, old = first.of(node.target)
                parent, name = self.place.of(path)
                try:
                    os.link(
                        old, name, src_dir_fd=old_parent, dst_dir_fd=parent, follow_symlinks=False
                    )
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    raise OSError(ACROSS) from None
                self.counts["h"] += 1

    def finish_directories(self) -> None:
        """Set modes and times, the deepest first: each change in one changes its time."""
        for path, node in reversed(list(self.nodes.items())):
            if node.kind != "d":
                continue
            self.where = path
            if path in ROOTS:
                fd = self.roots[path]
                os.fchmod(fd, node.mode)
                set_time(fd, node)
            else:
                parent, name = self.place.of(path)
                if node.mode != 0o700:
                    os.chmod(name, node.mode, dir_fd=parent)
                set_time(name, node, parent)
            self.counts["d"] += 1


def write(fd: int, piece: Any) -> None:
    """Write all of it."""
    written = os.write(fd, piece)
    while written < len(piece):
        written += os.write(fd, memoryview(piece)[written:])


def write_data(fd: int, piece: bytes) -> None:
    """Write all of it but blocks of zeros: they were holes, and take no room again."""
    for start in range(0, len(piece), HOLE):
        block = piece[start : start + HOLE]
        if block.count(0) == len(block):
            os.lseek(fd, len(block), os.SEEK_CUR)
        else:
            write(fd, block)


def hash_hole(hashed: Any, count: int) -> None:
    """Hash zeros."""
    zeros = memoryview(bytes(min(count, PIECE)))
    while count:
        hashed.update(zeros[:count])
        count -= min(count, PIECE)


def fail(code: int, error: str, where: bytes) -> int:
    """Say what is wrong."""
    from json import dumps

    place = where[:1000].decode("utf-8", "backslashreplace")
    sys.stderr.write(dumps({"error": error, "where": place}) + "\n")
    return code


def main(arguments: list[str]) -> int:
    """Refill, and say how it went."""
    os.umask(0)
    refill = None
    try:
        refill = Refill(Input(0), open_roots(arguments))
        refill.run()
    except Refused as error:
        return fail(CORRUPT, error.args[0], error.args[1] or (refill.where if refill else b""))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return fail(NO_SPACE if full else FAILED, str(error), refill.where if refill else b"")
    except Exception as error:
        return fail(FAILED, f"{type(error).__name__}: {error}", refill.where if refill else b"")
    counts = ", ".join(f'"{kind}": {count}' for kind, count in refill.counts.items())
    sys.stdout.write(f'{{{counts}, "bytes": {refill.bytes}}}\n')
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
