"""The manifest as the program that refills a sandbox reads it: what there must be in the end.

Part of ``refill_guest`` (see there): standard library only, Python 3.8 or later. Checked again
here, so that a fault of the worker's does not make a name that leads elsewhere.
"""

from __future__ import annotations

from codegen_mcp.engine.checkpoints.refill_guest_input import Input, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOTS = (b"workspace", b"venv")
LENGTHS = {"f": (7, 8), "d": (4,), "l": (5,), "h": (5,), "p": (4,)}
"""Fields of a line by its kind."""


class Node:
    """One name of the manifest."""

    __slots__ = ("done", "kind", "mode", "mtime", "seen", "sha256", "size", "source", "target")

    def __init__(self, line: list[Any], where: bytes) -> None:
        kind, mode, mtime = line[1:4]
        if type(kind) is not str or len(line) not in LENGTHS.get(kind, ()):
            raise Refused("a manifest line has an unknown kind or number of fields", where)
        if type(mode) is not int or type(mtime) is not int or not 0 <= mode <= 0o7777:
            raise Refused("a mode or time is no number, or out of range", where)
        self.kind, self.mode, self.mtime = kind, mode, mtime
        self.seen = 0
        """Number of the archive in which it was found last."""
        self.done = False
        self.size = self.source = 0
        self.target = self.sha256 = b""
        if kind == "f":
            self.size, digest, self.source = line[4:7]
            if type(self.size) is not int or type(self.source) is not int or self.size < 0:
                raise Refused("a size or source is no number, or out of range", where)
            if line[7:] and (type(line[7]) is not int or line[7] != 1):
                raise Refused("a manifest line has an unknown last field", where)
            try:
                self.sha256 = bytes.fromhex(digest)
            except (ValueError, TypeError):
                raise Refused("a sha256 is not hexadecimal", where) from None
            if len(self.sha256) != 32 or len(digest) != 64:
                raise Refused("a sha256 has the wrong length", where)
        elif kind in "lh":
            self.target = to_bytes(line[4])
            if not self.target or b"\0" in self.target:
                raise Refused("a link has no target, or one with a NUL", where)


def to_bytes(text: Any) -> bytes:
    """Return the bytes of a name; those that are no UTF-8 are lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape")  # type: ignore[no-any-return]
    except (AttributeError, UnicodeEncodeError):
        raise Refused("a name is no text", ascii(text)[:200].encode()) from None


def check_path(path: bytes) -> None:
    """Refuse a name that leads elsewhere, or that no file can have."""
    if path[:1] == b"/":
        raise Refused("a name is absolute", path)
    parts = path.split(b"/")
    if parts[0] not in ROOTS:
        raise Refused("a name is below neither workspace nor venv", path)
    for part in parts:
        if part in (b"", b".", b"..") or b"\0" in part or len(part) > 255:
            raise Refused("a name has a part that is empty, '.', '..', too long or has a NUL", path)


class Manifest:
    """What there must be in the end."""

    def __init__(self, source: Input) -> None:
        head = source.line("the first line of the manifest")
        if type(head) is not dict or head.get("format") != 1:
            raise Refused("the manifest has another format", b"")
        self.checkpoint = str(head.get("checkpoint")).rpartition(".")[2]
        """Its number."""
        self.nodes: dict[bytes, Node] = {}
        while source.left:
            self.add(source.line("a line of the manifest"))
        if len(self.nodes) != head.get("entries"):
            raise Refused("the manifest has another number of lines than it says", b"")
        for root in ROOTS:
            if root not in self.nodes or self.nodes[root].kind != "d":
                raise Refused("a root is missing or is no directory", root)

    def add(self, line: Any) -> None:
        """Check one line against those before it."""
        if type(line) is not list or len(line) < 4:
            raise Refused("a manifest line is no array of a path, kind, mode and time", b"")
        path = to_bytes(line[0])
        check_path(path)
        if path in self.nodes:
            raise Refused("a name is in the manifest twice", path)
        parent = path.rpartition(b"/")[0]
        if parent and (parent not in self.nodes or self.nodes[parent].kind != "d"):
            raise Refused("what it lies in is no directory of the manifest", path)
        node = Node(line, path)
        if node.kind == "h" and getattr(self.nodes.get(node.target), "kind", "") != "f":
            raise Refused("a hard link's target is no file before it", path)
        self.nodes[path] = node
