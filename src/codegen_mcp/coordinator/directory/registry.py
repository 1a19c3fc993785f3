"""Which directories there are, and how an address names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from codegen_mcp.coordinator.directory.base import Directory
from codegen_mcp.coordinator.directory.memory import MemoryDirectory
from codegen_mcp.coordinator.directory.sqlite import SqliteDirectory
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.masking import masked

DIRECTORIES: Mapping[str, Callable[[str], AbstractAsyncContextManager[Directory]]] = {
    "memory": lambda url: MemoryDirectory(),
    "sqlite": lambda url: SqliteDirectory(_path(url)),
}
"""By the scheme of their addresses."""


def open_directory(url_or_path: str) -> AbstractAsyncContextManager[Directory]:
    """Make the directory that an address names; ``async with`` opens it.

    Args:
        url_or_path: ``/path``, ``sqlite:///absolute/path`` or ``memory:``.

    Raises:
        InvalidRequest: It names none.
    """
    if url_or_path.startswith("/"):
        return SqliteDirectory(Path(url_or_path))
    scheme, colon, _ = url_or_path.partition(":")
    if not colon or scheme not in DIRECTORIES:
        raise InvalidRequest(
            f"directory {masked(url_or_path)!r} is not known; use an absolute path, "
            "sqlite:///path or memory:"
        )
    return DIRECTORIES[scheme](url_or_path)


def _path(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise InvalidRequest(
            f"directory {masked(url)!r} names no local file; use sqlite:///absolute/path"
        )
    return Path(path)
