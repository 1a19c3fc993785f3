"""The records of tasks that go along with a checkpoint."""

from __future__ import annotations

import gzip
import json
import zlib

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.engine.task_lines import FORMAT, header_line

MAX_BYTES = 256 * 1024 * 1024


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
                last = int(fields.get("last_sequence", 0))
            elif "start" in fields or "end" in fields:
                last = max(last, int(fields["seq"]))
                kept.append(line)
        except (ValueError, KeyError, TypeError, AttributeError):
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
        head = json.loads(lines[: lines.index(b"\n")])
        if head["format"] > FORMAT:
            raise ValueError(f"format {head['format']} is newer than {FORMAT}")
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise Corrupt(
            f"the task journal of a checkpoint is damaged ({error})", reason="CHECKPOINT_DAMAGED"
        ) from error
    return lines
