"""What was asked of the network and not given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 5
_HOST_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDenial:
    """A destination that code asked for and did not get."""

    host: str
    """As it was asked for, at most 255 characters; empty when it could not be read."""
    port: int
    """0 when it could not be read."""
    reason: str
    """For people: which rule refused it."""
    count: int = 1
    """How often, in this task."""

    def __str__(self) -> str:
        host = self.host if len(self.host) <= _HOST_SHOWN else self.host[:_HOST_SHOWN] + "..."
        where = f"{host or '?'}:{self.port}" if self.port else host or "a request"
        times = f", {self.count} times" if self.count > 1 else ""
        return f"{where} ({self.reason}{times})"


def denial_words(denials: Sequence[NetworkDenial]) -> str:
    """Say what was refused, in one sentence; empty when nothing was."""
    if not denials:
        return ""
    shown = "; ".join(str(one) for one in denials[:_SHOWN])
    more = f" and {len(denials) - _SHOWN} more" if len(denials) > _SHOWN else ""
    return f"the network refused {shown}{more}"
