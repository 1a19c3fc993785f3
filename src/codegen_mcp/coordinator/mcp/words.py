"""Numbers and names in the words that models are given."""

from __future__ import annotations

import re

from codegen_mcp.coordinator.mcp.config import McpConfig

UNIT = 1024
_TOOL = re.compile(
    r"(?<![\w'\"/.])(fs|run|pkg|session|task|output|artifact)\.(read|write|list|stat|move|delete|python|"
    r"shell|install|get|create|status|checkpoint|restore|fork|destroy|result|cancel)(?![\w'\"/.(])"
)
"""A tool's name on the wire, in a sentence."""


def shown_name(config: McpConfig, dotted: str) -> str:
    """A tool's name as this face lists it."""
    return dotted if config.tool_names == "dotted" else dotted.replace(".", "_")


def with_listed_names(config: McpConfig, sentence: str) -> str:
    """Replace tools' names in what the worker says by those that the caller knows."""
    return _TOOL.sub(lambda match: shown_name(config, match[0]), sentence)


def size(count: int) -> str:
    """``1,234 bytes``, ``512 KiB`` or ``10.5 MiB``."""
    if count < 10 * UNIT:
        return f"{count:,} {'byte' if count == 1 else 'bytes'}"
    for unit in ("KiB", "MiB", "GiB"):
        count_in = count / UNIT
        if count_in < UNIT or unit == "GiB":
            return f"{count_in:.0f} {unit}" if count_in >= 100 else f"{count_in:.1f} {unit}"
        count //= UNIT
    raise AssertionError


def duration(milliseconds: int) -> str:
    """``35 ms``, ``2.4 s`` or ``3 min 5 s``."""
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def cut_marker(config: McpConfig, stream: str, omitted: int, total: int, handle: str) -> str:
    """Say what is not shown, and how to read it.

    Args:
        config: How tools are named.
        stream: What was cut: ``stdout``.
        omitted: Bytes that are not shown.
        total: Of so many.
        handle: The arguments that read the rest: ``task_id="...", ...``.
    """
    name = shown_name(config, "output.read")
    return (
        f"[{omitted:,} of {total:,} bytes of {stream} are left out here; "
        f"read them with {name}({handle})]"
    )


def paragraphs(*parts: str) -> str:
    """Join what is not empty, each from its own line on."""
    return "\n".join(part.rstrip("\n") for part in parts if part)
