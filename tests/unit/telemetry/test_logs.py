from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging
import structlog
from structlog.contextvars import bind_contextvars
from codegen_mcp.telemetry.logs import configure_logging
log = structlog.get_logger()
configure_logging({level!r})
bind_contextvars(session_id="ses_1")
log.debug("quiet.event")
log.info("task.started", tool="echo", code="print('hunter2')", auth_token="hunter2")
logging.getLogger("library").warning("said %s", "so")
try:
    raise ValueError("boom")
except ValueError:
    log.exception("task.failed")
"""


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warn", 2)])
def test_logs_are_json_lines_with_ids_and_without_secrets(level, count):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(level=level)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) == count
    assert done.stdout == ""
    assert "hunter2" not in done.stderr
    assert {line["session_id"] for line in lines} == {"ses_1"}
    assert lines[-2]["event"] == "said so"
    assert "ValueError: boom" in lines[-1]["exception"]
    assert all(line["timestamp"].endswith("Z") for line in lines)
