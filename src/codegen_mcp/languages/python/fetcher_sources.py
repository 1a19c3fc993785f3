"""Which source distribution is meant, and what its build needs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidSdistFilename, parse_sdist_filename
from packaging.version import Version

from codegen_mcp.core.errors import Corrupt, InvalidRequest
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.python.fetcher_lock import RemoteFile, check_file_name, check_sha256
from codegen_mcp.languages.python.specifiers import Specifier, parse_specifier

_MAX_REQUIREMENTS = 200
_DEFAULT = ["setuptools>=40.8.0"]
"""What PEP 518 says for a source without ``[build-system]``."""


def choose_source(
    listed: Sequence[Mapping[str, object]], specifier: Specifier, interpreter: Interpreter
) -> RemoteFile | None:
    """Return the newest source distribution that the specifier and the interpreter allow."""
    found: dict[str, RemoteFile] = {}
    for entry in listed:
        try:
            name = check_file_name(str(entry["name"]))
            project, version = parse_sdist_filename(name)
            wanted = SpecifierSet(str(entry.get("requires_python", "")))
            sha256 = check_sha256(str(entry.get("sha256", "")))
        except (KeyError, ValueError, InvalidSdistFilename, InvalidSpecifier):
            continue
        if project != specifier.name or not wanted.contains(interpreter.version, prereleases=True):
            continue
        found[str(version)] = RemoteFile(
            project=project,
            version=str(version),
            name=name,
            url=str(entry.get("url", "")),
            sha256=sha256,
            size=0,
        )
    allowed = [*specifier.requirement.specifier.filter(found)]
    newest = max(allowed, key=Version, default=None)
    return found[newest] if newest is not None else None


def requirements_of(source: RemoteFile, pyproject: str) -> Sequence[str]:
    """Return the requirements of a build by its ``pyproject.toml`` (PEP 518).

    Raises:
        Corrupt: It is malformed, or requires something else than names and versions.
    """
    try:
        table = tomllib.loads(pyproject).get("build-system")
        required = table.get("requires") if isinstance(table, dict) else None
        if required is None:
            return _DEFAULT
        if not isinstance(required, list) or len(required) > _MAX_REQUIREMENTS:
            raise ValueError("requires is no list of a sensible length")
        return [parse_specifier(str(one)).text for one in required]
    except (ValueError, InvalidRequest) as error:
        raise Corrupt(
            f"{source.name} cannot be built: its build-system.requires: {error}"
        ) from None
