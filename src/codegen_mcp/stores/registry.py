"""Which stores there are, and how an address names one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.masking import masked
from codegen_mcp.stores.base import ObjectStore
from codegen_mcp.stores.local import LocalStore
from codegen_mcp.stores.memory import MemoryStore

Factory = Callable[[str, Mapping[str, str]], ObjectStore]
"""Takes the whole address and the environment."""


def _memory(url: str, environ: Mapping[str, str]) -> ObjectStore:
    return MemoryStore()


def _local(url: str, environ: Mapping[str, str]) -> ObjectStore:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise InvalidRequest(
            f"store {masked(url)!r} names no local directory; use file:///absolute/path"
        )
    return LocalStore(Path(path))


def _s3(url: str, environ: Mapping[str, str]) -> ObjectStore:
    try:
        from codegen_mcp.stores.s3 import S3Store
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise InvalidRequest(
            f"store {masked(url)!r} needs obstore; install codegen-mcp[s3] "
            "(pip install 'codegen-mcp[s3]')"
        ) from error
    from codegen_mcp.stores.s3_config import parse_s3_url

    return S3Store(parse_s3_url(url, environ))


STORES: Mapping[str, Factory] = {
    "memory": _memory,
    "file": _local,
    "s3": _s3,
}
"""By the scheme of their addresses."""


def open_store(url_or_path: str, *, environ: Mapping[str, str] | None = None) -> ObjectStore:
    """Make the store that an address names; ``async with`` opens it.

    Args:
        url_or_path: ``/path``, ``file:///path``, ``memory:`` or ``s3://bucket/prefix``.
        environ: What stands for this process's environment.

    Raises:
        InvalidRequest: It names none, or its settings are incomplete.
    """
    if url_or_path.startswith("/"):
        return LocalStore(Path(url_or_path))
    scheme, colon, _ = url_or_path.partition(":")
    if not colon or scheme not in STORES:
        raise InvalidRequest(
            f"store {masked(url_or_path)!r} is not known; use an absolute path, file:///path, "
            "memory: or s3://bucket/prefix"
        )
    return STORES[scheme](url_or_path, os.environ if environ is None else environ)
