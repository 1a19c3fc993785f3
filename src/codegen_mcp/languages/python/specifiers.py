"""Package specifiers from callers: PEP 508 names with versions, and nothing else.

What is refused, because an installer would obey it: options (``-r``, ``--index-url=...``), paths,
URLs, ``name @ url``, version control links, several lines in one entry. What passes is written
anew from its parsed parts, so that only the characters of PEP 508 reach a command line, never with
a leading dash, and the normalised name has no dot that could make it look like a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import NormalizedName, canonicalize_name

from codegen_mcp.core.errors import InvalidRequest

MAX_PACKAGES = 100
MAX_LENGTH = 512
"""Characters of one specifier; the longest in the first thousand projects has under 200."""

_ARCHIVES = (".whl", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".egg")
_ADVICE = "send a name with optional extras, versions and marker, such as 'requests[socks]>=2.31'"


@dataclass(frozen=True, slots=True)
class Specifier:
    """One checked specifier."""

    name: NormalizedName
    text: str
    """Written anew; equal for specifiers that mean the same."""
    pinned: bool
    """Exactly one version can satisfy it."""
    requirement: Requirement


def parse_specifiers(packages: Sequence[str]) -> tuple[Specifier, ...]:
    """Check what a caller wants installed.

    Raises:
        InvalidRequest: There is none, there are more than ``MAX_PACKAGES``, or one is not a plain
            PEP 508 specifier; the message has its value.
    """
    if not packages:
        raise InvalidRequest(f"packages is empty; {_ADVICE}", reason="INVALID_PACKAGE")
    if len(packages) > MAX_PACKAGES:
        raise InvalidRequest(
            f"{len(packages)} packages in one request; send at most {MAX_PACKAGES}",
            reason="INVALID_PACKAGE",
        )
    return tuple({s.text: s for s in map(parse_specifier, packages)}.values())


def parse_specifier(value: str) -> Specifier:
    """Check one specifier; see ``parse_specifiers``."""
    text = value.strip(" \t")
    fault = _fault(text)
    if fault:
        raise _refusal(value, fault)
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise _refusal(value, f"is not a package specifier ({_first_line(error)})") from None
    if requirement.url is not None:
        raise _refusal(value, "names a URL, and only names and versions are accepted")
    return _written_anew(requirement)


def _fault(text: str) -> str:
    """Return what is wrong before any parsing, or nothing."""
    lowered = text.lower()
    if not text:
        return "is empty"
    if len(text) > MAX_LENGTH:
        return f"has {len(text)} characters, more than {MAX_LENGTH}"
    if not text.isascii() or not text.isprintable():
        return "has a line break, a control character or one beyond ASCII"
    if text.startswith("-"):
        return "is an option, and none is accepted here (there are fields for upgrade and index)"
    if "://" in text or lowered.startswith(("git+", "hg+", "svn+", "bzr+", "file:")):
        return "is a URL, and only names and versions are accepted"
    before_marker = lowered.partition(";")[0].strip()
    if before_marker.startswith((".", "~", "/", "\\")) or before_marker.endswith(_ARCHIVES):
        return "is a path, and only names and versions are accepted"
    if any(mark in before_marker for mark in "/\\"):
        return "has a slash, and only names and versions are accepted"
    if any(mark in text for mark in "$`|#\0"):
        return "has a character that no specifier has"
    return ""


def _written_anew(requirement: Requirement) -> Specifier:
    name = canonicalize_name(requirement.name)
    extras = ",".join(sorted(canonicalize_name(extra) for extra in requirement.extras))
    versions = ",".join(sorted(str(one) for one in requirement.specifier))
    text = name + (f"[{extras}]" if extras else "") + versions
    if requirement.marker is not None:
        text += f" ; {requirement.marker}"
    pinned = any(
        one.operator == "===" or (one.operator == "==" and not one.version.endswith(".*"))
        for one in requirement.specifier
    )
    return Specifier(name=name, text=text, pinned=pinned, requirement=Requirement(text))


def _refusal(value: str, fault: str) -> InvalidRequest:
    shown = value if len(value) <= 120 else value[:117] + "..."
    return InvalidRequest(f"package {shown!r} {fault}; {_ADVICE}", reason="INVALID_PACKAGE")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "malformed"
