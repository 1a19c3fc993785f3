"""What is installed, read from an environment that the session may have tampered with.

The worker reads it from outside, maybe as root: no link is followed, no FIFO is waited for, every
read is bounded (openat2(2) RESOLVE_NO_SYMLINKS).
"""

from __future__ import annotations

import contextlib
import email.parser
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidName, NormalizedName, canonicalize_name
from packaging.version import InvalidVersion, Version

from codegen_mcp.sandbox import openat2

_MAX_ENTRIES = 20_000
_METADATA_BYTES = 256 * 1024
_SUFFIX = ".dist-info"


@dataclass(frozen=True, slots=True)
class Distribution:
    """One installed distribution, by its own METADATA."""

    name: str
    version: str


def list_distributions(venv: Path, site_packages: str) -> Mapping[NormalizedName, str]:
    """Return the names of the dist-info directories; nothing where there is no environment."""
    found: dict[NormalizedName, str] = {}
    with contextlib.suppress(OSError):
        directory = _open(venv, site_packages)
        try:
            with os.scandir(directory) as entries:
                for count, entry in enumerate(entries):
                    if count >= _MAX_ENTRIES:
                        break
                    name = entry.name.partition("-")[0]
                    if entry.name.endswith(_SUFFIX) and entry.is_dir(follow_symlinks=False):
                        with contextlib.suppress(InvalidName):
                            found[canonicalize_name(name, validate=True)] = entry.name
        finally:
            os.close(directory)
    return found


def read_distributions(
    venv: Path, site_packages: str, directories: Iterable[str]
) -> Mapping[NormalizedName, Distribution]:
    """Read name and version of these dist-info directories; those that cannot be are left out."""
    found: dict[NormalizedName, Distribution] = {}
    with contextlib.suppress(OSError):
        directory = _open(venv, site_packages)
        try:
            for entry in directories:
                with contextlib.suppress(OSError, ValueError, InvalidName, InvalidVersion):
                    one = _read(directory, entry)
                    found[canonicalize_name(one.name, validate=True)] = one
        finally:
            os.close(directory)
    return found


def _open(venv: Path, site_packages: str) -> int:
    """Open site-packages; ``venv`` itself is a name that only the worker can change."""
    root = os.open(venv, openat2.DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return openat2.open_beneath(
            root,
            os.fsencode(site_packages),
            os.O_RDONLY | os.O_DIRECTORY,
            resolve=openat2.NO_LINKS,
        )
    finally:
        os.close(root)


def _read(directory: int, entry: str) -> Distribution:
    path = os.fsencode(entry) + b"/METADATA"
    fd = openat2.open_beneath(directory, path, os.O_RDONLY, resolve=openat2.NO_LINKS)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("METADATA is no regular file")
        head = file.read(_METADATA_BYTES).partition(b"\n\n")[0]
    fields = email.parser.HeaderParser().parsestr(head.decode("utf-8", "replace"))
    name, version = str(fields["Name"]), str(fields["Version"])
    stem = entry.removesuffix(_SUFFIX).partition("-")[0]
    if canonicalize_name(name) != canonicalize_name(stem) or len(version) > 200:
        raise ValueError("METADATA is of another distribution")
    Version(version)
    return Distribution(name, version)
