"""How long what could be sent now waits for more to go with it."""

from __future__ import annotations

SHARE_S = 0.00006
"""For each call under way. A call is at work for ten times as long on its way through, so as many
as there are take longer than all they wait for together, and nobody waits for a wait."""
MOST_S = 0.004


def gather_s(under_way: int) -> float:
    """Return the seconds to wait in a rush; 0 where few calls are under way.

    Args:
        under_way: Calls that may have something to send meanwhile.
    """
    wait_s = min(under_way * SHARE_S, MOST_S)
    return wait_s if wait_s >= 0.0005 else 0.0  # uvloop counts milliseconds
