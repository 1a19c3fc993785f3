"""What a wheelhouse has, as written to its ``index.json``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from codegen_mcp.core.errors import Corrupt

_log = structlog.get_logger()

FORMAT = 1


@dataclass(slots=True)
class StoredFile:
    """One stored file."""

    name: str
    size: int
    indexes: list[str]
    used_ms: int


@dataclass(slots=True)
class View:
    """The wheels of one resolution."""

    key: str
    directory: str
    """Name below ``views/``."""
    created_ms: int
    used_ms: int
    pinned: bool
    """Every name was asked for by exact version, so it never grows old."""
    files: list[str]
    """sha256 of each."""


def stored_path(root: Path, sha256: str, name: str) -> Path:
    """Return where a file of this name and content is kept."""
    if name.endswith(".whl"):
        return root / "files" / f"{sha256}.whl"
    return root / "sources" / sha256


def save(root: Path, files: Mapping[str, StoredFile], views: Mapping[str, View]) -> None:
    """Write the index in one step, readable for the worker alone."""
    data = {
        "format": FORMAT,
        "files": {sha256: asdict(file) for sha256, file in files.items()},
        "views": [asdict(view) for view in views.values()],
    }
    temporary = root / ".index.json"
    with open(temporary, "w", opener=_private) as file:
        json.dump(data, file)
    os.replace(temporary, root / "index.json")


def load(root: Path) -> tuple[dict[str, StoredFile], dict[str, View]]:
    """Read the index; entries whose files are gone or differ in size are left out.

    An index that cannot be read costs what was kept, and nothing else.

    Raises:
        Corrupt: It was written by a newer version.
    """
    path = root / "index.json"
    try:
        data = json.loads(path.read_text())
        if data["format"] <= FORMAT:
            return _read(root, data)
    except FileNotFoundError:
        return {}, {}
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("packages.index_unreadable", path=str(path), reason=str(error))
        return {}, {}
    raise Corrupt(
        f"the wheelhouse {str(root)!r} has format {data['format']!r}, newer than {FORMAT}; use a "
        "newer worker or delete the directory"
    )


def _read(root: Path, data: Mapping[str, Any]) -> tuple[dict[str, StoredFile], dict[str, View]]:
    files: dict[str, StoredFile] = {}
    for sha256, entry in data["files"].items():
        file = StoredFile(**entry)
        with contextlib.suppress(OSError):
            if os.stat(stored_path(root, sha256, file.name)).st_size == file.size:
                files[sha256] = file
    views: dict[str, View] = {}
    for entry in data["views"]:
        view = View(**entry)
        whole = all(sha256 in files for sha256 in view.files)
        if whole and (root / "views" / view.directory).is_dir():
            views[view.key] = view
    return files, views


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
