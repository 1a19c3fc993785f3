"""Where an agent's tool call reports before it does anything: it is recorded, and paid for.

What it then asks the gateway for is part of it: recorded as such, and not paid for again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from codegen_mcp.coordinator.auth.quotas import QuotaLedger
from codegen_mcp.coordinator.auth.trail import Outcome, Recorded, Trail
from codegen_mcp.coordinator.principal import Principal


class Desk:
    """Of one process; both parts are the gateway's own too."""

    def __init__(self, ledger: QuotaLedger, trail: Trail | None) -> None:
        """``trail``: None keeps no records."""
        self._ledger = ledger
        self._trail = trail

    @asynccontextmanager
    async def call(
        self,
        principal: Principal,
        name: str,
        arguments: Mapping[str, Any],
        *,
        looks: bool = False,
    ) -> AsyncIterator[Outcome]:
        """Make a call inside the block.

        Args:
            principal: Who calls.
            name: Of the tool, or of the protocol's method.
            arguments: As they came.
            looks: It changes nothing, and is not worth two records.

        Raises:
            Full: A quota. Unavailable: It cannot be recorded.
        """
        if self._trail is None:
            with self._ledger.call(principal):
                yield Outcome()
            return
        text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), default=str)
        session = arguments.get("session_id")
        call = Recorded(
            face="mcp",
            name=name,
            arguments=text.encode("utf-8", "surrogatepass"),
            facts={"session": session} if isinstance(session, str) else {},
            looks=looks,
            contents=text if self._trail.contents else None,
        )
        async with self._trail.call(principal, call, nests=True) as outcome:
            with self._ledger.call(principal):
                yield outcome
