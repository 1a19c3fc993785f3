"""What the words of uv and of the download mean; uv has no codes for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from packaging.utils import NormalizedName, canonicalize_name

from codegen_mcp.core.errors import LimitExceeded, StoreUnavailable
from codegen_mcp.languages.python.index_proxy import ProxyCounters
from codegen_mcp.languages.python.packages import Index

_FILE = re.compile(r"/([A-Za-z0-9][A-Za-z0-9._]*)-[0-9][^/\s`]*\.(?:whl|tar\.gz|zip)")
_NO_WHEEL = re.compile(
    r"Wheels are required for `([^`]+)` because building from source is disabled"
)
_NETWORK = re.compile(
    r"Failed to fetch|Request failed|error sending request|server error|Could not connect|"
    r"operation timed out|status code 5\d\d",
    re.IGNORECASE,
)


def projects_in(words: str) -> list[NormalizedName]:
    """Return the projects whose files are named in an error."""
    return list(dict.fromkeys(canonicalize_name(name) for name in _FILE.findall(words)))


def without_wheel(words: str) -> list[NormalizedName]:
    """Return the projects that have a source distribution and no wheel that fits."""
    return list(dict.fromkeys(canonicalize_name(name) for name in _NO_WHEEL.findall(words)))


def names_in(words: str, names: Iterable[str]) -> list[str]:
    """Return those of the names that a message speaks of; all where it names none."""
    asked = list(dict.fromkeys(names))
    text = words.lower()
    named = [
        name
        for name in asked
        if re.search(rf"(?<![a-z0-9._-]){re.escape(name)}(?![a-z0-9_-]|\.[a-z])", text)
    ]
    return named or asked


def last_lines(words: str, limit: int = 4096) -> str:
    """Return the end of what was said, where the reason stands."""
    text = words.strip()
    return text if len(text) <= limit else "..." + text[-limit:]


def raise_if_unavailable(index: Index, words: str, counters: ProxyCounters) -> None:
    """Tell a network's failure from a resolver's.

    Raises:
        LimitExceeded: The byte limit was met.
        StoreUnavailable: The index, or a server of its files, did not answer.
    """
    _raise_if_over_limit(counters)
    resolved = "No solution found" in words
    if counters.refused or (not resolved and (counters.unreachable or _NETWORK.search(words))):
        raise _unavailable(index, words, counters)


def raise_for_download(index: Index, words: str, counters: ProxyCounters) -> None:
    """Say why a file could not be had.

    Raises:
        LimitExceeded: It is too large.
        StoreUnavailable: Everything else.
    """
    _raise_if_over_limit(counters)
    if "larger than" in words:
        raise LimitExceeded(f"a package file is too large for this worker: {words}")
    raise _unavailable(index, words, counters)


def _raise_if_over_limit(counters: ProxyCounters) -> None:
    if counters.over_limit:
        raise LimitExceeded(
            f"fetching took more than {counters.bytes_in} bytes, the most that this worker "
            "takes in for one request"
        )


def _unavailable(index: Index, words: str, counters: ProxyCounters) -> StoreUnavailable:
    evidence: Sequence[tuple[str, str]] = counters.unreachable or counters.refused
    why = "; ".join(f"{target}: {reason}" for target, reason in evidence[:3])
    why = index.hide_secrets(why or last_lines(words, 600))
    return StoreUnavailable(
        f"the package index {index.public_url} does not deliver: {why}",
        metadata={"index": index.public_url},
    )
