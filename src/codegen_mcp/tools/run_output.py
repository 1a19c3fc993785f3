"""What a run's answer shows of its output."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.core.task import EndedBy, Outcome
from codegen_mcp.tools.base import CapturedOutput, ToolModel

MAX_TEXT_BYTES = 3 * 1024 * 1024
"""Of both streams together as JSON text, whatever was printed; a message holds 4 MiB."""


class RunResult(ToolModel):
    """How a program ended and what it printed."""

    stdout: str = Field(description="Bytes that are not UTF-8 appear as U+FFFD.")
    stderr: str
    exit_code: int = Field(description="0 is success; 124 timeout, 137 memory, 128+n signal n.")
    duration_ms: int
    timed_out: bool
    ended_by: str = Field(description="exit, signal, timeout, memory, pids, disk, cpu, output, ...")
    remedy: str = Field("", description="What to do next when a limit ended the run.")
    stdout_omitted_bytes: int = Field(
        0, description="Bytes left out of the middle of stdout; 0: it is complete."
    )
    stderr_omitted_bytes: int = Field(0, description="The same for stderr.")


def run_result(outcome: Outcome, captured: CapturedOutput) -> RunResult:
    """Put an ended run into words."""
    (stdout, stdout_cut), (stderr, stderr_cut) = shown(captured.stdout, captured.stderr)
    return RunResult(
        stdout=stdout,
        stderr=stderr,
        exit_code=outcome.exit_code,
        duration_ms=round(outcome.duration_s * 1000),
        timed_out=outcome.ended_by is EndedBy.TIMEOUT,
        ended_by=outcome.ended_by.name.lower(),
        remedy=outcome.remedy,
        stdout_omitted_bytes=captured.stdout_omitted + stdout_cut,
        stderr_omitted_bytes=captured.stderr_omitted + stderr_cut,
    )


def shown(stdout: bytes, stderr: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
    """Decode both streams; ((stdout, bytes cut), (stderr, bytes cut)).

    Text is exact and whole, except that garbage (each bad byte takes three as U+FFFD, a control
    character six in JSON) is cut in the middle where it would burst the message.
    """
    texts = [(stream.decode("utf-8", "replace"), 0) for stream in (stdout, stderr)]
    if sum(_json_size(text) for text, _ in texts) > MAX_TEXT_BYTES:
        texts = [_within(stream, MAX_TEXT_BYTES // 2) for stream in (stdout, stderr)]
    return texts[0], texts[1]


def _within(data: bytes, room: int) -> tuple[str, int]:
    text = data.decode("utf-8", "replace")
    kept = len(data)
    while _json_size(text) > room:
        kept = min(kept * 3 // 4, kept * room // _json_size(text))
        head = data[: kept // 2]
        tail = data[len(data) - (kept - len(head)) :]
        text = head.decode("utf-8", "replace") + tail.decode("utf-8", "replace")
    return text, len(data) - kept


def _json_size(text: str) -> int:
    if len(text) * 6 <= MAX_TEXT_BYTES // 2:
        return len(text) * 6
    encoded = text.encode("utf-8", "replace")
    short = sum(encoded.count(char) for char in (b"\n", b"\t", b"\r", b'"', b"\\"))
    controls = len(encoded) - len(encoded.translate(None, bytes(range(32)) + b"\x7f"))
    return len(encoded) + short + 5 * controls
