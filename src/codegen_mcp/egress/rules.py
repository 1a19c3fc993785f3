"""What one task may reach: every list that there is must have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codegen_mcp.egress.patterns import AllowList


@dataclass(frozen=True, slots=True)
class Rules:
    """The worker's list, and those of the session and the task where they gave one."""

    lists: Sequence[AllowList]

    def refusal(self, host: str, port: int) -> str:
        """Say which list has not got a normal host and port; empty when all have."""
        for one in self.lists:
            if not one.matches(host, port):
                return f"not on the {one.owner}'s allow list"
        return ""
