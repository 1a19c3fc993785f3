"""Logs: one JSON object a line on standard error, ids bound once, nothing secret.

An event is a constant dotted name and facts are fields. Request, session and task ids come from
the context (``server.interceptors``); what libraries say through the standard ``logging`` comes
out in the same form.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

HIDDEN = frozenset(
    {"token", "auth_token", "authorization", "password", "secret", "secrets", "env", "env_vars"}
    | {"code", "stdin", "stdout", "stderr", "data", "contents", "arguments"}
)
"""Fields that are never shown, should one be logged by mistake."""


def configure_logging(
    level: str = "info", *, stream: TextIO | None = None, colour: bool = False
) -> None:
    """Set logging up for the whole process; call it once, first.

    Args:
        level: debug, info, warn or error.
        stream: Standard error if None.
        colour: Lines for people instead of JSON.
    """
    threshold = LEVELS[level.lower()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
    ]
    # Tracebacks never show variables: those may hold what callers sent.
    renderers: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if colour
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)


def hide_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace what must not be in a log by its size."""
    for name in HIDDEN.intersection(event):
        value = event[name]
        size = len(value) if hasattr(value, "__len__") else 1
        event[name] = f"hidden ({size})"
    return event
