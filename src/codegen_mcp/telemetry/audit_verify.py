"""Checks a whole audit log, also while it is written, against heads that were published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codegen_mcp.core.errors import Corrupt, NotFound
from codegen_mcp.telemetry.audit_chain import Head
from codegen_mcp.telemetry.audit_files import list_files
from codegen_mcp.telemetry.audit_reader import Follower, has_line, records_of

MAX_PROBLEMS = 20


@dataclass(slots=True)
class Findings:
    """What a check found."""

    files: int = 0
    records: int = 0
    calls: int = 0
    first: int = 0
    """Sequence of the oldest record; beyond 1, older files were taken away."""
    head: Head = field(default_factory=Head)
    torn: int = 0
    """Places where a crash left half a line, which the log itself accounts for."""
    missed: int = 0
    """Records that could not be written, as the log itself says."""
    open_calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Calls without an outcome: under way now, or when the process died."""
    lost_calls: int = 0
    """Of these, ones that began before the newest start: their process died."""
    unfinished: int = 0
    """Bytes of a last line that is being written, or that a crash left."""
    heads_checked: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing was changed, cut off or replaced, as far as can be known."""
        return not self.problems


def verify(directory: Path, heads: Sequence[Head] = ()) -> Findings:
    """Check every record, and that every published head is one of the log.

    Args:
        directory: Of the log.
        heads: As they were logged or scraped. Without any, a log that was cut off at its end, or
            made anew as a whole, looks sound.

    Raises:
        NotFound: There is no log. OSError.
    """
    found = Findings()
    if not directory.is_dir() or not (files := list_files(directory)):
        raise NotFound(f"there is no audit log in {str(directory)!r}; name its directory")
    wanted = {head.sequence: head for head in heads}
    for head in heads:
        if wanted[head.sequence] != head:
            found.problems.append(f"two heads of record {head.sequence} were given: {head}")
    before: Head | None = None
    for index, file in enumerate(files):
        last = index == len(files) - 1
        follower = Follower(file.first, before)
        finished = True
        try:
            if last and not has_line(file):
                break  # a crash came while it was made
            for _, record, whole in records_of(file, follower):
                finished = whole
                if record is not None and follower.head is not None:
                    _count(found, record)
                    _compare(found, wanted, follower.head)
        except Corrupt as error:
            found.problems.append(error.message)
            break
        if (follower.torn or not finished or follower.head is None) and not last:
            found.problems.append(f"{file.path.name} ends in the middle of a record")
            break
        found.files += 1
        found.unfinished = len(follower.torn)
        if follower.head is not None:
            before = found.head = follower.head
    _missing(found, wanted.values())
    return found


def _count(found: Findings, record: dict[str, Any]) -> None:
    found.records += 1
    found.first = found.first or record["seq"]
    kind, call = record.get("kind"), record.get("call", "")
    if kind == "call":
        found.calls += 1
        found.open_calls[call] = record
    elif kind == "done":
        found.calls += 1
    elif kind == "end":
        found.open_calls.pop(call, None)
    elif kind == "start":
        found.lost_calls = len(found.open_calls)
    elif kind == "torn":
        found.torn += 1
    elif kind == "gap":
        found.missed += record.get("missed", 0)


def _compare(found: Findings, wanted: dict[int, Head], head: Head) -> None:
    expected = wanted.get(head.sequence)
    if expected is None:
        return
    found.heads_checked += 1
    if expected != head and len(found.problems) < MAX_PROBLEMS:
        found.problems.append(
            f"record {head.sequence} was published as {expected.digest}, and is {head.digest}: "
            "the log was made anew"
        )


def _missing(found: Findings, wanted: Iterable[Head]) -> None:
    if found.problems:
        return  # what comes after damage was not read
    for head in wanted:
        if head.sequence > found.head.sequence:
            found.problems.append(
                f"record {head.sequence} was published, and the log ends with "
                f"{found.head.sequence}: its end was cut off"
            )


def heads_in(lines: Iterable[str]) -> list[Head]:
    """Find the heads that a service logged (event ``audit.head``).

    Args:
        lines: Of its log; what is no JSON is skipped, and what stands before it on a line too.
    """
    found: list[Head] = []
    for line in lines:
        start = line.find("{")
        if start < 0 or "audit.head" not in line:
            continue
        try:
            event = json.loads(line[start:])
            if event.get("event") == "audit.head":
                found.append(Head.parse(f"{event['sequence']}:{event['digest']}"))
        except (ValueError, KeyError, AttributeError):
            continue
    return found
