"""A run as a model should see it: its output within the budget, how it ended, and what it left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp.coordinator.mcp.answers import ArtifactItem, RunAnswer
from codegen_mcp.coordinator.mcp.budget import HeadTail, Shown, json_size
from codegen_mcp.coordinator.mcp.config import McpConfig
from codegen_mcp.coordinator.mcp.follow import Followed
from codegen_mcp.coordinator.mcp.sessions import Chosen
from codegen_mcp.coordinator.mcp.tracebacks import trimmed
from codegen_mcp.coordinator.mcp.wire_tools import ended_by
from codegen_mcp.coordinator.mcp.words import cut_marker, duration, paragraphs, shown_name, size

_MARKER_BYTES = 400
"""Kept free for the words about what was cut."""
_STDERR_SHARE = 3
"""stderr gets at least this part of the room, if it needs it."""
_ARTIFACTS_SHARE = 2
"""Artifacts get at most this part of the room."""
_LINK_BYTES = 120
"""Of a resource link, beside what it names."""


def session_fields(chosen: Chosen) -> dict[str, Any]:
    """What every answer says of its session."""
    return {
        "session_id": chosen.session_id,
        "notice": chosen.notice,
        "restored_from": chosen.restored_from,
        "lost": chosen.lost,
    }


def session_words(chosen: Chosen) -> str:
    """The same in words; nothing for a session that the caller knows."""
    restored = (
        f"The session had expired and was restored from checkpoint {chosen.restored_from}."
        + (f" Lost: {chosen.lost}." if chosen.lost else "")
        if chosen.restored_from
        else ""
    )
    return paragraphs(restored, chosen.notice)


def run_answer(
    config: McpConfig, chosen: Chosen, got: Followed, artifacts: Sequence[ArtifactItem]
) -> RunAnswer:
    """Say how a finished run ended and what it printed."""
    result = got.check()
    facts = result.metadata
    complete(got, result)
    room = config.form_bytes - 2 * _MARKER_BYTES
    named, cost = fitting_artifacts(artifacts, room // _ARTIFACTS_SHARE)
    room -= cost
    stdout, stderr = share(got.stdout, got.stderr, room)
    out = _text(config, got.task_id, "stdout", stdout, got.stdout.total)
    err, frames = trimmed(_text(config, got.task_id, "stderr", stderr, got.stderr.total))
    if frames:
        err += (
            f"\n[{frames} frames of libraries are left out; all of stderr: "
            f'{shown_name(config, "output.read")}(task_id="{got.task_id}", stream="stderr")]'
        )
    return RunAnswer(
        **session_fields(chosen),
        task_id=got.task_id,
        state="finished",
        exit_code=facts.exit_code,
        ended_by=ended_by(facts.ended_by),
        remedy=facts.remedy,
        duration_ms=facts.duration_ms,
        stdout=out,
        stderr=err,
        stdout_bytes=got.stdout.total,
        stderr_bytes=got.stderr.total,
        stdout_omitted_bytes=stdout.omitted,
        stderr_omitted_bytes=stderr.omitted,
        artifacts=tuple(named),
        artifacts_omitted=max(len(result.artifacts), len(artifacts)) - len(named),
    )


def fitting_artifacts(
    found: Sequence[ArtifactItem], room: int
) -> tuple[Sequence[ArtifactItem], int]:
    """Return those that fit, and what they cost: in the structured form, or as words and link."""
    cost = 0
    for number, one in enumerate(found):
        names = 2 * json_size(one.name) + 2 * len(one.artifact_id) + 2 * len(one.content_type)
        more = max(len(one.model_dump_json()), names + _LINK_BYTES)
        if cost + more > room:
            return found[:number], cost
        cost += more
    return found, cost


def complete(got: Followed, result: pb.TaskResult) -> None:
    """Count what never came as live output, or came only with the result."""
    answer, facts = got.answer, result.metadata
    for name, seen, printed in (
        ("stdout", got.stdout, facts.stdout_bytes),
        ("stderr", got.stderr, facts.stderr_bytes),
    ):
        text = answer.get(name, "")
        if not seen.total and isinstance(text, str) and text:
            kept = text.encode("utf-8", "replace")
            head = kept[: len(kept) // 2] if len(kept) < printed else kept
            seen.add(head)
            seen.skip(printed - (len(kept) - len(head)))
            seen.add(kept[len(head) :])
        seen.skip(printed)


def share(stdout: HeadTail, stderr: HeadTail, room: int) -> tuple[Shown, Shown]:
    """Divide the room: what one stream does not need, the other has."""
    err = stderr.shown(room)
    err_size = _size(err)
    if err_size > room // _STDERR_SHARE:
        out_size = _size(stdout.shown(room))
        err = stderr.shown(max(room // _STDERR_SHARE, room - out_size))
        err_size = _size(err)
    return stdout.shown(room - err_size), err


def run_text(config: McpConfig, answer: RunAnswer, chosen: Chosen) -> str:
    """The same answer in words."""
    printed = "" if answer.stdout or answer.stderr else "(nothing was printed)"
    return paragraphs(
        answer.stdout,
        f"stderr:\n{answer.stderr}" if answer.stderr else "",
        printed,
        ending_words(answer),
        *(
            f"artifact {one.name} ({one.content_type}, {size(one.size_bytes)}): "
            f"artifact_id={one.artifact_id}"
            for one in answer.artifacts
        ),
        f"and {answer.artifacts_omitted} more artifacts: "
        f'{shown_name(config, "artifact.list")}(task_id="{answer.task_id}")'
        if answer.artifacts_omitted
        else "",
        f"session_id={answer.session_id} task_id={answer.task_id}",
        session_words(chosen),
    )


def ending_words(answer: RunAnswer) -> str:
    """Say how it ended, and what to do about it."""
    if answer.ended_by in ("", "exit"):
        said = f"exit code {answer.exit_code}"
    else:
        said = f"ended by {answer.ended_by} (exit code {answer.exit_code})"
    remedy = f": {answer.remedy}" if answer.remedy else ""
    return f"[{said} after {duration(answer.duration_ms)}{remedy}]"


def _text(config: McpConfig, task_id: str, stream: str, shown: Shown, total: int) -> str:
    handle = f'task_id="{task_id}", stream="{stream}", offset={shown.omitted_from}'
    return shown.joined(cut_marker(config, stream, shown.omitted, total, handle))


def _size(shown: Shown) -> int:
    return json_size(shown.head) + json_size(shown.tail)
