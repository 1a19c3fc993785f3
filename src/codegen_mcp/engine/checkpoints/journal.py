"""The records of tasks that go along with a checkpoint."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.core.ids import check_task_id
from codegen_mcp.engine.base import ResultEvent
from codegen_mcp.engine.task_lines import DAMAGED, header_line, read_end, read_facts, read_header

MAX_BYTES = 256 * 1024 * 1024
_WORD = re.compile(r"[A-Za-z0-9._:+/=-]{0,256}")


def packed(journal: bytes) -> tuple[bytes, int]:
    """Keep the records of tasks; (gzip, last sequence); empty when there is nothing to keep.

    A task without an end was under way: part of what it did may be in the checkpoint. Its start
    stays, so that its retry after a restore is told that the outcome is unknown (WORKER_LOST), and
    does not do it all again. Used sequence numbers stay used.

    Args:
        journal: Bytes of a session's ``tasks.jsonl``, perhaps with a torn last line.
    """
    kept: list[bytes] = []
    last = 0
    for number, line in enumerate(journal.split(b"\n")[:-1]):
        try:
            fields = json.loads(line)
            if number == 0:
                last = _whole(int(fields.get("last_sequence", 0)))
            else:
                last = max(last, _check(fields))
                kept.append(line)
        except DAMAGED:
            continue  # damaged: of no use to anybody
    if not kept and not last:
        return b"", 0
    data = b"\n".join([header_line(last).rstrip(b"\n"), *kept, b""])
    return gzip.compress(data, 1, mtime=0), last


def unpack(data: bytes) -> bytes:
    """Return the lines for a ``tasks.jsonl``.

    Raises:
        Corrupt: It is no journal of ours.
    """
    try:
        unpacker = zlib.decompressobj(wbits=31)
        lines = unpacker.decompress(data, MAX_BYTES)
        if not unpacker.eof or unpacker.unconsumed_tail or unpacker.unused_data:
            raise ValueError("it is cut, too long or followed by something")
        head, *records, rest = lines.split(b"\n")
        if rest:
            raise ValueError("its last line is cut off")
        _whole(read_header(json.loads(head)))
        for line in records:
            _check(json.loads(line))
    except (*DAMAGED, zlib.error) as error:
        raise Corrupt(
            f"the task journal of a checkpoint is damaged ({str(error)[:200]})",
            reason="CHECKPOINT_DAMAGED",
        ) from error
    return lines


def _check(fields: Mapping[str, Any]) -> int:
    """Look at a record as its reader will, before a session depends on it; its sequence number.

    Raises:
        DAMAGED: It is none.
    """
    facts = read_facts("", fields)
    check_task_id(facts.task_id)
    for text in (facts.tool, facts.fingerprint):
        if not _WORD.fullmatch(text):
            raise ValueError(f"{text[:80]!r} is no name of a tool, or no digest")
    _whole(facts.submitted_at_ms)
    if "end" in fields:
        end = read_end(fields, None)
        if isinstance(end, ResultEvent) and not all(isinstance(one, str) for one in end.artifacts):
            raise ValueError("an artifact is no text")
        stdout, stderr = fields.get("logged", (0, 0))
        _whole(int(stdout) + int(stderr))
    return _whole(facts.sequence)


def _whole(number: int) -> int:
    if not 0 <= number < 1 << 62:
        raise ValueError(f"{str(number)[:40]} is out of range")
    return number
