r"""The one door from a caller's path to a place in the workspace.

Pure text work: what comes out is a tuple of plain names below the workspace's root, nothing has
been looked up. Links are the kernel's part (``sandbox/openat2.py``). What is refused here:

=====================================  ===============================================
``""``                                 empty: InvalidRequest
``"a\0b"``                            the kernel would stop at the NUL: InvalidRequest
``"/etc/passwd"``, ``"//x"``           absolute: PathEscape
``"../x"``, ``"a/../../x"``            climbs out at some point: PathEscape
``"a/.."``, ``"."``                    the workspace itself, where a file is needed: InvalidRequest
5,000 characters                       longer than the kernel takes (4,095 bytes): InvalidRequest
a name of 256 bytes                    longer than file systems take (255): InvalidRequest
``"\ud800"``                          text that is no text and no escaped byte: InvalidRequest
=====================================  ===============================================

``a/./b//c`` is ``a/b/c`` and ``a/../b`` is ``b``: ``..`` is taken off as text, before any link is
followed. Backslashes, colons, newlines, emoji, leading ``~`` or ``-`` are ordinary characters, and
names are not Unicode-normalised. A str stands for its UTF-8 bytes, with the surrogates of
``os.fsdecode`` for bytes that are not UTF-8.
"""

from __future__ import annotations

from codegen_mcp.core.errors import InvalidRequest, PathEscape

MAX_PATH_BYTES = 4095
"""PATH_MAX of Linux without its closing NUL."""
MAX_NAME_BYTES = 255

Parts = tuple[bytes, ...]
"""Plain names from the workspace's root downwards; empty is the root itself."""


def parse_path(path: str | bytes, *, root_allowed: bool = False) -> Parts:
    """Return the names that lead from the workspace's root to ``path``.

    Args:
        path: As the caller sent it.
        root_allowed: Accept ``"."``, the workspace itself, as an empty tuple.

    Raises:
        PathEscape: It is absolute or climbs out.
        InvalidRequest: It is malformed in another way; the message says how.
    """
    raw = path if isinstance(path, bytes) else _encode(path)
    if not raw:
        raise InvalidRequest("path is empty; give one relative to the workspace, like 'data/a.csv'")
    if len(raw) > MAX_PATH_BYTES:
        raise InvalidRequest(
            f"path {show_path(raw)} has {len(raw)} bytes; at most {MAX_PATH_BYTES} are possible"
        )
    if b"\0" in raw:
        raise InvalidRequest(f"path {show_path(raw)} contains a NUL byte; remove it")
    if raw.startswith(b"/"):
        raise PathEscape(
            f"path {show_path(raw)} is absolute; give it relative to the workspace, without the "
            "leading '/'"
        )
    parts: list[bytes] = []
    for name in raw.split(b"/"):
        if name in (b"", b"."):
            continue
        if name == b"..":
            if not parts:
                raise PathEscape(f"path {show_path(raw)} leaves the workspace; remove the '..'")
            parts.pop()
            continue
        if len(name) > MAX_NAME_BYTES:
            raise InvalidRequest(
                f"name {show_path(name)} has {len(name)} bytes; at most {MAX_NAME_BYTES} are "
                "possible between two '/'"
            )
        parts.append(name)
    if not parts and not root_allowed:
        raise InvalidRequest(f"path {show_path(raw)} is the workspace itself; name something in it")
    return tuple(parts)


def join_path(parts: Parts) -> bytes:
    """Return the path of ``parts`` as the kernel takes it; ``.`` for the root."""
    return b"/".join(parts) if parts else b"."


def show_path(path: bytes) -> str:
    """Quote a path for a message, shortened in the middle."""
    text = path.decode("utf-8", "backslashreplace")
    if len(text) > 200:
        text = f"{text[:120]}...{text[-60:]}"
    return repr(text)


def _encode(path: str) -> bytes:
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"path {path[:120]!r} has a lone surrogate, which no file name can hold; send UTF-8"
        ) from None
