"""What an attack is, and what came of it.

An attack is Python source that runs as any program of a session would. It ends by saying what it
saw: ``held(...)`` when the wall stood, ``broken(...)`` when it got through (``tools.py`` has these
and a few helpers). An attack that the worker must end (a bomb) names instead how it has to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.base import WALLS


class Verdict(StrEnum):
    """What came of an attack."""

    HELD = "HELD"
    GAP = "GAP"
    """It got through, and this level says beforehand that it does."""
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack."""

    name: str
    """A short sentence: what is tried."""
    wall: str
    """Of ``WALLS``: what has to stop it."""
    source: str
    """Where it is described: an advisory, a manual page, an article."""
    code: str
    ends_by: tuple[EndedBy, ...] = (EndedBy.EXIT,)
    """How the run may end; with EXIT alone the code's own word is asked."""
    then: str = ""
    """Code of a second run, which is asked instead of the first."""
    reboot: bool = False
    """Boot the sandbox anew, on the same files, before ``then``."""
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Condition (``runner.conditions``: an isolation level, ``no-memory-group``, ...) to why it
    gets through there."""
    may_lose_guest: bool = False
    """A bomb that can take the guest along: it ends as named, and the sandbox is booted anew."""
    depends_on_load: bool = False
    """A gap may go unseen on a busy machine."""
    quick: bool = False
    """Part of every probe."""
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.wall not in WALLS:
            raise ValueError(f"attack {self.name!r} names an unknown wall {self.wall!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One attack's outcome."""

    attack: Attack
    verdict: Verdict
    seen: str
    """What the attack or the worker saw; for a GAP, with the reason."""
    duration_s: float
