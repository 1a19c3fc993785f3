"""Records calls in the audit log: that they begin before they do anything, and how they ended.

A call that only looks has one record, with its outcome; so has one that another call makes by
itself (an agent's tool call makes several of the gateway), whose own record names that one.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from structlog.contextvars import get_contextvars

from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.server.status import code_of
from codegen_mcp.telemetry.audit import AuditLog
from codegen_mcp.telemetry.audit_chain import digest_of

WITHIN: ContextVar[str] = ContextVar("audit_within", default="")
"""The call that makes others."""
MAX_NAME = 256
"""Characters kept of an id that a caller chose."""
MAX_CONTENTS_BYTES = 1024 * 1024
"""Of what is kept of one call's arguments or answer, where contents are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What is known of a call before it is made."""

    face: str
    """``grpc``, or ``mcp``: who took the call in."""
    name: str
    """Of the method, or of the agent's tool."""
    arguments: bytes
    """In one fixed form; kept as digest and size."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Ids that it names, and the tool that it runs."""
    looks: bool = False
    """It changes nothing."""
    contents: str | None = None
    """The arguments as text, where contents are kept."""


class Outcome:
    """How a call ended; filled while it runs."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.bytes = 0
        """Of what was answered."""
        self.status = "OK"

    def note(self, **facts: Any) -> None:
        """Add facts; empty ones are left out."""
        for name, value in facts.items():
            if value:
                self.facts[name] = value[:MAX_NAME] if isinstance(value, str) else value

    def took_result(self, answer: Mapping[str, Any]) -> None:
        """Note what an agent's tool answered: where it ran, and how that ended."""
        self.bytes = len(json.dumps(answer, separators=(",", ":"), default=str))
        self.note(session=answer.get("session_id"), task=answer.get("task_id"))
        self.note(ended_by=answer.get("ended_by"), exit_code=answer.get("exit_code"))


class Trail:
    """Writes to one log."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    @property
    def contents(self) -> bool:
        """Whether arguments and answers are kept, too."""
        return self._log.config.contents

    @asynccontextmanager
    async def call(
        self, principal: Principal, call: Recorded, *, nests: bool = False
    ) -> AsyncIterator[Outcome]:
        """Make a call inside the block; the answer goes out after it.

        Args:
            principal: Who calls.
            call: What is known of it.
            nests: Recorded calls inside the block are its own.

        Raises:
            Unavailable: It cannot be recorded, and nothing was done; reason AUDIT_UNAVAILABLE.
        """
        within = WITHIN.get()
        call_id = "call_" + secrets.token_hex(8)
        known = self._described(principal, call, call_id, within)
        whole = call.looks or bool(within)
        if not whole:
            await self._log.record({"kind": "call", **known})
        head = {"kind": "done", **known} if whole else {"kind": "end", "call": call_id}
        outcome = Outcome()
        began = time.monotonic()
        token = WITHIN.set(within or call_id) if nests else None
        try:
            yield outcome
        except (asyncio.CancelledError, GeneratorExit):
            outcome.status = "CANCELLED"
            self._log.post(self._ended(head, outcome, began))
            raise
        except Exception as error:
            outcome.status = code_of(error).name
            outcome.note(reason=getattr(error, "reason", "INTERNAL"))
            await self._log.record(self._ended(head, outcome, began), keep=not call.looks)
            raise
        else:
            await self._log.record(self._ended(head, outcome, began), keep=not call.looks)
        finally:
            if token is not None:
                WITHIN.reset(token)

    def end_of_task(self, task_id: str, facts: Mapping[str, Any]) -> None:
        """A task has ended that the call that began it did not wait for."""
        self._log.post({"kind": "task", "task": task_id[:MAX_NAME], **facts})

    @staticmethod
    def _described(
        principal: Principal, call: Recorded, call_id: str, within: str
    ) -> dict[str, Any]:
        known: dict[str, Any] = {
            "call": call_id,
            "who": principal.name[:MAX_NAME],
            "face": "mcp" if within else call.face,
            "name": call.name,
            **{
                name: value[:MAX_NAME] if isinstance(value, str) else value
                for name, value in call.facts.items()
                if value
            },
            "args_sha256": digest_of(call.arguments),
            "args_bytes": len(call.arguments),
        }
        if request := get_contextvars().get("request_id"):
            known["request"] = str(request)[:MAX_NAME]
        if within:
            known["within"] = within
        if call.contents is not None:
            known["args"] = kept(call.contents)
        return known

    @staticmethod
    def _ended(head: Mapping[str, Any], outcome: Outcome, began: float) -> dict[str, Any]:
        return {
            **head,
            "status": outcome.status,
            "ms": round((time.monotonic() - began) * 1e3, 1),
            "answer_bytes": outcome.bytes,
            **outcome.facts,
        }


def kept(text: str) -> str:
    """Return contents, cut where they are too large for a record."""
    if len(text) <= MAX_CONTENTS_BYTES:
        return text
    return f"{text[:MAX_CONTENTS_BYTES]}[{len(text) - MAX_CONTENTS_BYTES} characters more]"
