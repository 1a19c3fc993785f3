"""Records calls in the audit log: that they begin before they do anything, and how they ended.

A call that only looks has one record, with its outcome; so has one that another call makes by
itself (an agent's tool call makes several of the gateway), whose own record names that one.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.server.interceptors import CALL_REQUEST_ID
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

    def call(self, principal: Principal, call: Recorded, *, nests: bool = False) -> CallInTrail:
        """Make a call inside the block that this opens; the answer goes out after it.

        Args:
            principal: Who calls.
            call: What is known of it.
            nests: Recorded calls inside the block are its own.
        """
        return CallInTrail(self._log, principal, call, nests=nests)

    def end_of_task(self, task_id: str, facts: Mapping[str, Any]) -> None:
        """A task has ended that the call that began it did not wait for."""
        self._log.post({"kind": "task", "task": task_id[:MAX_NAME], **facts})


class CallInTrail:
    """An async context manager: of one call, from its record to that of its outcome.

    Raises:
        Unavailable: When it is entered: it cannot be recorded; reason AUDIT_UNAVAILABLE.
    """

    __slots__ = ("_began", "_call", "_counted", "_head", "_log", "_nests", "_outcome", "_principal")

    def __init__(self, log: AuditLog, principal: Principal, call: Recorded, *, nests: bool) -> None:
        self._log = log
        self._principal = principal
        self._call = call
        self._nests: Token[str] | bool = nests
        self._outcome = Outcome()

    async def __aenter__(self) -> Outcome:
        within = WITHIN.get()
        call_id = "call_" + secrets.token_hex(8)
        known = _described(self._principal, self._call, call_id, within)
        self._counted = 0 if within else 1  # what another one makes is under way with that
        self._log.under_way += self._counted
        if self._call.looks or within:
            self._head = {"kind": "done", **known}
        else:
            self._head = {"kind": "end", "call": call_id}
            try:
                await self._log.record({"kind": "call", **known})
            except BaseException:
                self._log.under_way -= self._counted
                raise
        if self._nests:
            self._nests = WITHIN.set(within or call_id)
        self._began = time.monotonic()
        return self._outcome

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        outcome = self._outcome
        try:
            if isinstance(error, asyncio.CancelledError | GeneratorExit):
                outcome.status = "CANCELLED"
                self._log.post(self._ended())
            elif error is None or isinstance(error, Exception):
                if error is not None:
                    outcome.status = code_of(error).name
                    outcome.note(reason=getattr(error, "reason", "INTERNAL"))
                await self._log.record(self._ended(), keep=not self._call.looks)
        finally:
            self._log.under_way -= self._counted
            if isinstance(self._nests, Token):
                WITHIN.reset(self._nests)

    def _ended(self) -> dict[str, Any]:
        return {
            **self._head,
            "status": self._outcome.status,
            "ms": round((time.monotonic() - self._began) * 1e3, 1),
            "answer_bytes": self._outcome.bytes,
            **self._outcome.facts,
        }


def _described(principal: Principal, call: Recorded, call_id: str, within: str) -> dict[str, Any]:
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
    if request := CALL_REQUEST_ID.get():
        known["request"] = request[:MAX_NAME]
    if within:
        known["within"] = within
    if call.contents is not None:
        known["args"] = kept(call.contents)
    return known


def kept(text: str) -> str:
    """Return contents, cut where they are too large for a record."""
    if len(text) <= MAX_CONTENTS_BYTES:
        return text
    return f"{text[:MAX_CONTENTS_BYTES]}[{len(text) - MAX_CONTENTS_BYTES} characters more]"
