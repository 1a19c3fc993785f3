"""What the checkpointer is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codegen_mcp.engine.checkpoints.publisher import RETRY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Settings of checkpoints."""

    keep: int = 10
    """Visible checkpoints of one session."""
    max_chain: int = 8
    """Archives that a restore may have to read; the next checkpoint is a full one."""
    remote: bool = False
    """The store is beyond a network: drafts outlive its absence, archives are read once."""
    retry_s: Sequence[float] = RETRY_S
    """Between attempts to store what waits for the store; then the last one again and again."""
    exclusive: bool = True
    """No other worker writes to the store: what is half there at the start is a dead one's."""
