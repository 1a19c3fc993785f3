"""The strict parser of manifests: one pass, nothing is taken on trust."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from codegen_mcp.core.checkpoint import FORMAT, Entry, EntryKind, parse_checkpoint_id
from codegen_mcp.core.errors import Corrupt, LimitExceeded, NotFound, WrongState
from codegen_mcp.engine.checkpoints.archive_inflate import iter_inflated
from codegen_mcp.engine.checkpoints.bounds import MAX_ENTRIES

ROOTS = (b"workspace", b"venv")
MAX_PATH_BYTES = 65536
"""Of a whole path; longer than PATH_MAX, as trees can be made deeper than one call can name."""
MAX_NAME_BYTES = 255
"""NAME_MAX of Linux (limits.h)."""
MAX_TARGET_BYTES = 4095
"""PATH_MAX of Linux without its NUL: the longest text of a symbolic link."""
MAX_LINE_BYTES = 1024 * 1024
"""Room for a path and a target of MAX_PATH_BYTES each, every byte escaped by six characters."""
MAX_SIZE = 2**63 - 1
MAX_MTIME_NS = 2**63 * 10**9
MAX_NUMBER = 9_999_999_999
_MAX_REMOVED = 1000
_FIELDS = ("format", "checkpoint", "parent", "entries", "bytes", "removed")
_KINDS = {kind.value: kind for kind in EntryKind}


class _BadError(Exception):
    """What is wrong with the line at hand."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first line."""

    checkpoint: str
    number: int
    parent: int
    entries: int
    total_bytes: int
    removed: Sequence[bytes]


def _refuse(text: str) -> NoReturn:
    raise _BadError(f"{text[:40]!r} is no whole number")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _BadError("a field occurs twice")
    return found


_values = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse)
_objects = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse, object_pairs_hook=_pairs)


def read_manifest(data: bytes, expected: str | None, max_bytes: int) -> tuple[Head, list[Entry]]:
    """Read; see ``manifest.decode_manifest``."""
    entries: list[Entry] = []
    number = 1
    try:
        lines = _lines(iter_inflated([data], max_bytes, single=True))
        head = _head(_parsed(_objects, next(lines)), expected)
        tree = _Tree(head)
        for line in lines:
            number += 1
            if len(entries) == head.entries:
                raise _BadError(f"it promises {head.entries} entries and more follow")
            entries.append(tree.entry(_parsed(_values, line)))
        if len(entries) != head.entries:
            raise _BadError(f"it promises {head.entries} entries and {len(entries)} follow")
        if tree.total_bytes != head.total_bytes:
            raise _BadError(f"it promises {head.total_bytes} bytes, its files {tree.total_bytes}")
    except (Corrupt, LimitExceeded) as error:
        raise type(error)(f"manifest: {error.message}") from None
    except _BadError as error:
        raise Corrupt(f"manifest, line {number}: {error}") from None
    return head, entries


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    """Cut into lines, each ended; memory use depends on the longest only."""
    begun: list[str] = []
    length = 0
    for piece in pieces:
        if not piece.isascii():
            raise _BadError("in or after it is a byte that is no ASCII")
        first, *rest = piece.decode("ascii").split("\n")
        begun.append(first)
        length += len(first)
        if length > MAX_LINE_BYTES:
            raise _BadError(f"it is longer than {MAX_LINE_BYTES} bytes")
        if rest:
            yield "".join(begun)
            begun = [rest.pop()]
            length = len(begun[0])
            yield from rest
    if length:
        raise _BadError("the last line has no end")


def _parsed(decoder: json.JSONDecoder, line: str) -> Any:
    try:
        value, end = decoder.raw_decode(line)
    except (ValueError, RecursionError) as error:
        raise _BadError(f"no JSON: {str(error)[:200]}") from None
    if end != len(line):
        raise _BadError(f"more follows after character {end}")
    return value


def _head(value: Any, expected: str | None) -> Head:
    if type(value) is not dict:
        raise _BadError("it is no object")
    version = value.get("format")
    if type(version) is not int or version < 1:
        raise _BadError(f"format {version!r} is none")
    if version > FORMAT:
        raise WrongState(
            f"the checkpoint has format {version}, this worker reads up to {FORMAT}; "
            "update the worker"
        )
    if tuple(sorted(value)) != tuple(sorted(_FIELDS)):
        raise _BadError(f"its fields are {sorted(value)!r}"[:300])
    checkpoint, removed = value["checkpoint"], value["removed"]
    if type(checkpoint) is not str or type(removed) is not list or len(removed) > _MAX_REMOVED:
        raise _BadError("checkpoint is no text, or removed no list of up to 1,000")
    try:
        number = parse_checkpoint_id(checkpoint).number
    except NotFound:
        raise _BadError(f"{checkpoint[:120]!r} is no checkpoint") from None
    if expected is not None and checkpoint != expected:
        raise _BadError(f"it is that of {checkpoint!r}, not of {expected!r}")
    return Head(
        checkpoint,
        number,
        _whole(value["parent"], "parent", 0, number - 1),
        _whole(value["entries"], "entries", 0, MAX_ENTRIES),
        _whole(value["bytes"], "bytes", 0, 2**80),
        tuple(_path(path) for path in removed),
    )


def _whole(value: Any, name: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _BadError(f"{name} {str(value)[:40]} is no number from {least} to {most}")
    return value


def _bytes(text: Any, name: str, most: int) -> bytes:
    if type(text) is not str:
        raise _BadError(f"{name} is no text")
    try:
        value = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _BadError(f"{name} has a surrogate that stands for no byte") from None
    if not 0 < len(value) <= most or b"\0" in value:
        raise _BadError(f"{name} {text[:80]!r} is empty, too long or has NUL")
    return value


def _path(text: Any) -> bytes:
    """A path that is checked as a whole; ``_Tree`` checks by parents, which is quicker."""
    path = _bytes(text, "path", MAX_PATH_BYTES)
    parts = path.split(b"/")
    if parts[0] not in ROOTS:
        raise _BadError(f"path {text[:80]!r} is below no root")
    for part in parts:
        _check_name(part, text)
    return path


def _check_name(name: bytes, text: str) -> None:
    if name in (b"", b".", b"..") or len(name) > MAX_NAME_BYTES:
        raise _BadError(f"path {text[:80]!r} has the part {name[:80]!r}")


class _Tree:
    """The entries so far."""

    def __init__(self, head: Head) -> None:
        self.total_bytes = 0
        self._oldest = head.number if not head.parent else 1
        self._number = head.number
        self._kinds: dict[bytes, EntryKind] = {}

    def entry(self, fields: Any) -> Entry:
        if type(fields) is not list or len(fields) < 4:
            raise _BadError("it is no array of at least four")
        text, letter, mode, mtime_ns = fields[:4]
        path = _bytes(text, "path", MAX_PATH_BYTES)
        kind = _KINDS.get(letter) if type(letter) is str else None
        if kind is None:
            raise _BadError(f"kind {str(letter)[:40]!r} is none")
        _whole(mode, "mode", 0, 0o7777)
        _whole(mtime_ns, "mtime_ns", -MAX_MTIME_NS, MAX_MTIME_NS - 1)
        kinds = self._kinds
        if path in kinds:
            raise _BadError(f"path {text[:80]!r} occurs twice")
        parent, slash, name = path.rpartition(b"/")
        _check_name(name, text)
        if slash:
            if kinds.get(parent) is not EntryKind.DIRECTORY:
                raise _BadError(f"path {text[:80]!r} lies in no directory named before")
        elif path not in ROOTS or kind is not EntryKind.DIRECTORY:
            raise _BadError(f"path {text[:80]!r} is no root directory")
        entry = self._of_kind(path, kind, mode, mtime_ns, fields[4:])
        kinds[path] = kind
        return entry

    def _of_kind(
        self, path: bytes, kind: EntryKind, mode: int, mtime_ns: int, rest: list[Any]
    ) -> Entry:
        if kind is EntryKind.FILE:
            if len(rest) not in (3, 4):
                raise _BadError("a file has size, sha256, source and perhaps 1")
            size, sha256, source = rest[:3]
            _whole(size, "size", 0, MAX_SIZE)
            _whole(source, "source", self._oldest, self._number)
            sparse = len(rest) == 4
            if sparse and (type(rest[3]) is not int or rest[3] != 1):
                raise _BadError("the mark of a sparse file is 1")
            self.total_bytes += size
            return Entry(path, kind, mode, mtime_ns, size, _digest(sha256), b"", source, sparse)
        if kind is EntryKind.SYMLINK or kind is EntryKind.HARDLINK:
            if len(rest) != 1:
                raise _BadError("a link has a target")
            hard = kind is EntryKind.HARDLINK
            target = _bytes(rest[0], "target", MAX_PATH_BYTES if hard else MAX_TARGET_BYTES)
            if hard and self._kinds.get(target) is not EntryKind.FILE:
                raise _BadError(f"the hard link's target {rest[0][:80]!r} is no file named before")
            return Entry(path, kind, mode, mtime_ns, target=target)
        if rest:
            raise _BadError(f"kind {kind.value!r} has no further fields")
        return Entry(path, kind, mode, mtime_ns)


def _digest(text: Any) -> bytes:
    if type(text) is str and len(text) == 64:
        try:
            value = bytes.fromhex(text)
        except ValueError:
            value = b""
        if value.hex() == text:
            return value
    raise _BadError(f"sha256 {str(text)[:80]!r} is no 64 lower hexadecimal digits")
