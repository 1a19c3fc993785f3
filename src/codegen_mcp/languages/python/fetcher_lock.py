"""What uv resolved: a pylock.toml (PEP 751) read with care, and the one wheel of each package.

The text comes out of the fetcher's sandbox and is treated as hostile.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from packaging import tags
from packaging.utils import (
    InvalidWheelFilename,
    NormalizedName,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from codegen_mcp.core.errors import Unavailable
from codegen_mcp.core.interpreter import Interpreter

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}")
_MAX_PACKAGES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One distribution file on the index."""

    project: NormalizedName
    version: str
    name: str
    """File name."""
    url: str
    sha256: str
    """Empty where the index tells none; then only what arrived can be recorded."""
    size: int
    """0 where the index does not say."""


def read_lock(text: str, interpreter: Interpreter) -> tuple[RemoteFile, ...]:
    """Choose one wheel for each package of a lock; those with local files only are left out.

    Raises:
        Unavailable: The text is not what uv writes.
    """
    ranks = _ranks(interpreter.version)
    wheels: list[RemoteFile] = []
    try:
        packages = tomllib.loads(text).get("packages", [])
        if len(packages) > _MAX_PACKAGES:
            raise Unavailable(f"the resolution has {len(packages)} packages; that is too many")
        for package in packages:
            name = canonicalize_name(package["name"], validate=True)
            version = str(Version(package["version"]))
            entries = [e for e in package.get("wheels", []) if not _is_local(e)]
            files = [_remote_file(name, version, entry) for entry in entries]
            if files:
                wheels.append(min(files, key=lambda file: _rank(file.name, ranks)))
    except (ValueError, KeyError, TypeError, AttributeError, InvalidVersion) as error:
        raise Unavailable(f"uv's resolution cannot be read: {error}") from None
    return tuple(wheels)


def check_file_name(name: str) -> str:
    """Return a file name that is safe to use as one.

    Raises:
        ValueError: It is not.
    """
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"file name {name[:80]!r}")
    return name


def check_sha256(value: str) -> str:
    """Return a hexadecimal sha256, or the empty string as it is.

    Raises:
        ValueError: It is neither.
    """
    if value and not _SHA256.fullmatch(value):
        raise ValueError(f"sha256 {value[:80]!r}")
    return value


def _is_local(entry: Mapping[str, object]) -> bool:
    """Whether a wheel is one of the stubs that we gave uv."""
    return "path" in entry or str(entry.get("url", "")).startswith("file:")


def _remote_file(project: NormalizedName, version: str, entry: Mapping[str, object]) -> RemoteFile:
    url = str(entry["url"])
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"wheel URL {url[:200]!r}")
    name = check_file_name(unquote(parts.path.rpartition("/")[2]))
    try:
        found, found_version, _, _ = parse_wheel_filename(name)
    except InvalidWheelFilename as error:
        raise ValueError(str(error)) from None
    if found != project or str(found_version) != version:
        raise ValueError(f"wheel {name!r} for {project} {version}")
    hashes = entry.get("hashes")
    sha256 = str(hashes.get("sha256", "")) if isinstance(hashes, dict) else ""
    size = entry.get("size", 0)
    return RemoteFile(
        project=project,
        version=version,
        name=name,
        url=url,
        sha256=check_sha256(sha256),
        size=size if isinstance(size, int) and size > 0 else 0,
    )


@lru_cache(maxsize=16)
def _ranks(version: str) -> Mapping[tags.Tag, int]:
    """Rank of each tag that fits; sessions share the worker's machine and C library."""
    short = tuple(int(part) for part in version.split(".")[:2])
    platforms = list(tags.platform_tags())
    known: Sequence[tags.Tag] = [
        *tags.cpython_tags(short, platforms=platforms),
        *tags.compatible_tags(short, f"cp{short[0]}{short[1]}", platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(known)))}


def _rank(file_name: str, ranks: Mapping[tags.Tag, int]) -> int:
    """Best rank of a wheel's tags; uv listed it, so one that we do not know comes last."""
    return min(ranks.get(tag, len(ranks)) for tag in parse_wheel_filename(file_name)[3])
