"""Errors as a model should read them: what, why, and what to do next."""

from __future__ import annotations

from mcp_types import CallToolResult, TextContent

from codegen_mcp.coordinator.mcp.config import McpConfig
from codegen_mcp.coordinator.mcp.words import shown_name, with_listed_names
from codegen_mcp.server.status import MAX_TASK_TEXT_BYTES, Failure, failure_of

META = "codegen_mcp/error"
"""In ``_meta`` of a result that is an error: the same as data, for programs."""

NEXT = {
    "FULL": "All sessions are taken. End one that is not needed with {session.destroy}, "
    "see {session.list}.",
    "QUEUE_FULL": "Wait for the tasks under way to end.",
    "TASK_NOT_FOUND": "A session remembers its last 256 tasks. Check the task_id.",
    "CHECKPOINT_NOT_FOUND": "{session.status} names a session's last checkpoint.",
    "OUTCOME_UNKNOWN": "Look at the session's files before doing it again.",
    "DRAINING": "The server is shutting down; connect again in a moment.",
}
"""Reason to what a model can do about it, with names of tools."""


def failed(error: Exception, config: McpConfig) -> CallToolResult:
    """Make the result of a tool that could not do its work."""
    failure = failure_of(error, text_bytes=MAX_TASK_TEXT_BYTES)
    return CallToolResult(
        content=[TextContent(text=_text(failure, config))],
        is_error=True,
        _meta={META: _facts(failure)},
    )


def _text(failure: Failure, config: McpConfig) -> str:
    lines = [with_listed_names(config, failure.message)]
    if hint := NEXT.get(failure.reason, ""):
        for name in ("session.destroy", "session.list", "session.status"):
            hint = hint.replace("{" + name + "}", shown_name(config, name))
        lines.append(hint)
    if failure.retry_after_s is not None:
        lines.append(f"Try again after {max(failure.retry_after_s, 0.1):.3g} s.")
    return "\n".join(lines)


def _facts(failure: Failure) -> dict[str, object]:
    facts: dict[str, object] = {
        "status": failure.code.name,
        "reason": failure.reason,
        "retriable": failure.retriable,
    }
    if failure.retry_after_s is not None:
        facts["retry_after_ms"] = int(failure.retry_after_s * 1000)
    if failure.error_id:
        facts["error_id"] = failure.error_id
    return facts
