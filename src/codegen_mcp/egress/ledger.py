"""What one task did on the network: bytes, connections, and what it was refused."""

from __future__ import annotations

from collections.abc import Sequence

from codegen_mcp.core.network import NetworkDenial

MAX_DENIALS = 64
"""Different ones that are told; the rest is counted in the last."""
MAX_SHOWN = 255


class OverLimit(Exception):
    """The task's bytes are used up."""


class Ledger:
    """Counts for one task."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._denials: dict[tuple[str, int, str], int] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self.connections = 0
        """That were made, ever."""

    def refuse(self, host: str, port: int, reason: str) -> None:
        """Write down a refusal."""
        key = _shown(host), port, reason
        if key not in self._denials and len(self._denials) >= MAX_DENIALS:
            key = "", 0, "further destinations"
        self._denials[key] = self._denials.get(key, 0) + 1

    def denials(self) -> Sequence[NetworkDenial]:
        """What was refused, in the order of the first time."""
        return tuple(
            NetworkDenial(host=host, port=port, reason=reason, count=count)
            for (host, port, reason), count in self._denials.items()
        )

    def count(self, *, received: int = 0, sent: int = 0) -> None:
        """Add bytes.

        Raises:
            OverLimit: There are more than the task may have.
        """
        self.bytes_in += received
        self.bytes_out += sent
        if self.bytes_in + self.bytes_out > self._max_bytes:
            self.refuse("", 0, f"more than {self._max_bytes} bytes in one task")
            raise OverLimit


def _shown(host: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in host[:MAX_SHOWN])
