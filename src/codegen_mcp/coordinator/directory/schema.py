"""The directory's tables, and how one format becomes the next.

A format never changes once it was released: each later one is a further entry below. Tests keep a
file of every format.
"""

from __future__ import annotations

from collections.abc import Sequence

Statements = Sequence[str]

FORMAT_1: Statements = (
    "CREATE TABLE directory (format INTEGER NOT NULL)",
    "INSERT INTO directory (format) VALUES (1)",
    # One row for each worker there ever was: an incarnation is never given out twice.
    """
    CREATE TABLE worker (
        worker_id TEXT PRIMARY KEY,
        start_id TEXT NOT NULL,
        incarnation BIGINT NOT NULL,
        beats BIGINT NOT NULL,
        dead BOOLEAN NOT NULL
    )""",
    # sequence is an unsigned number of 64 bits less 2**63, ended counts up with each end.
    """
    CREATE TABLE session (
        session_id TEXT PRIMARY KEY,
        principal TEXT NOT NULL,
        worker_id TEXT,
        incarnation BIGINT,
        epoch BIGINT NOT NULL,
        checkpoint_id TEXT NOT NULL,
        sequence BIGINT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('creating', 'live', 'lost', 'ended')),
        auto_restore BOOLEAN NOT NULL,
        adhoc BOOLEAN NOT NULL,
        store_id TEXT NOT NULL,
        ended BIGINT
    )""",
    "CREATE INDEX session_owner ON session (worker_id, incarnation, session_id)",
    "CREATE INDEX session_principal ON session (principal, session_id)",
    # Of all that a principal ever had, most have ended.
    "CREATE INDEX session_live ON session (principal, session_id) WHERE state <> 'ended'",
    "CREATE INDEX session_page ON session (session_id) WHERE state <> 'ended'",
    "CREATE INDEX session_ended ON session (ended) WHERE ended IS NOT NULL",
)

MIGRATIONS: Sequence[Statements] = (FORMAT_1,)
"""The n-th makes format n of what was there before; it has to set ``directory.format`` itself."""
