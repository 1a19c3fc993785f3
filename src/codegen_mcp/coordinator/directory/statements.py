"""The directory's SQL: each method is one of these statements, or two in one transaction.

Written in what SQLite and Postgres have in common, with named parameters. What an adapter for
Postgres has to add is named in docs/design/0011-directory.md.
"""

from __future__ import annotations

COLUMNS = (
    "session_id, principal, worker_id, incarnation, epoch, checkpoint_id, sequence, state, "
    "auto_restore, adhoc, store_id"
)

_LIVE_OWNER = """
    EXISTS (
        SELECT 1 FROM worker
        WHERE worker.worker_id = :worker_id AND worker.incarnation = :incarnation
            AND NOT worker.dead
    )"""

_HELD = f"""
    session_id = :session_id AND worker_id = :worker_id AND incarnation = :incarnation
    AND epoch = :epoch AND state IN ('creating', 'live') AND {_LIVE_OWNER}"""

REGISTER = """
INSERT INTO worker (worker_id, start_id, incarnation, beats, dead)
VALUES (:worker_id, :start_id, 1, 0, FALSE)
ON CONFLICT (worker_id) DO UPDATE SET
    incarnation = CASE
        WHEN worker.start_id = excluded.start_id AND NOT worker.dead THEN worker.incarnation
        ELSE worker.incarnation + 1
    END,
    beats = CASE
        WHEN worker.start_id = excluded.start_id AND NOT worker.dead THEN worker.beats
        ELSE 0
    END,
    start_id = excluded.start_id,
    dead = FALSE
RETURNING incarnation"""

LOSE_EARLIER = """
UPDATE session SET state = 'lost'
WHERE worker_id = :worker_id AND incarnation < :incarnation AND state IN ('creating', 'live')"""

BEAT = """
UPDATE worker SET beats = beats + 1
WHERE worker_id = :worker_id AND incarnation = :incarnation AND NOT dead"""

BEATS = "SELECT worker_id, incarnation, beats FROM worker WHERE NOT dead"

LIVES = f"SELECT {_LIVE_OWNER}"

DECLARE_DEAD = """
UPDATE worker SET dead = TRUE
WHERE worker_id = :worker_id AND incarnation = :incarnation AND NOT dead
    AND beats = COALESCE(:at_beat, beats)"""

LOSE = """
UPDATE session SET state = 'lost'
WHERE worker_id = :worker_id AND incarnation = :incarnation AND state IN ('creating', 'live')"""

LOST = f"""
SELECT {COLUMNS} FROM session
WHERE worker_id = :worker_id AND incarnation = :incarnation AND state = 'lost'
ORDER BY session_id"""

# All adhoc sessions of a principal, the new one too, count as one.
RESERVE = f"""
INSERT INTO session ({COLUMNS})
SELECT :session_id, :principal, :worker_id, :incarnation, 1, :checkpoint_id, :sequence, :state,
    :auto_restore, :adhoc, :store_id
WHERE {_LIVE_OWNER} AND (
    :max_sessions = 0
    OR (
        SELECT COUNT(*) FROM session
        WHERE principal = :principal AND state <> 'ended' AND NOT adhoc
    ) + CASE WHEN :adhoc THEN 0 ELSE 1 END + CASE
        WHEN :adhoc OR EXISTS (
            SELECT 1 FROM session WHERE principal = :principal AND state <> 'ended' AND adhoc
        ) THEN 1
        ELSE 0
    END <= :max_sessions
)
ON CONFLICT (session_id) DO NOTHING"""

CONFIRM = f"UPDATE session SET state = 'live' WHERE {_HELD}"

# The checkpoint comes out of the statement that takes the epoch: one that was read before may be
# older than what its owner was told is safe.
ACQUIRE = f"""
UPDATE session
SET worker_id = :worker_id, incarnation = :incarnation, epoch = epoch + 1, state = 'live'
WHERE session_id = :session_id AND epoch = :epoch AND state <> 'ended'
    AND {_LIVE_OWNER}
    AND NOT EXISTS (
        SELECT 1 FROM worker AS holder
        WHERE holder.worker_id = session.worker_id AND holder.incarnation = session.incarnation
            AND NOT holder.dead
    )
RETURNING {COLUMNS}"""

COMMIT = f"""
UPDATE session SET
    checkpoint_id = CASE WHEN :checkpoint_id = '' THEN checkpoint_id ELSE :checkpoint_id END,
    sequence = CASE WHEN sequence < :sequence THEN :sequence ELSE sequence END
WHERE {_HELD}"""

RELEASE = f"UPDATE session SET worker_id = NULL, incarnation = NULL WHERE {_HELD}"

END = """
UPDATE session SET
    state = 'ended', worker_id = NULL, incarnation = NULL,
    ended = COALESCE(
        ended, (SELECT COALESCE(MAX(ended), 0) + 1 FROM session WHERE ended IS NOT NULL)
    )
WHERE session_id = :session_id AND epoch = :epoch"""

GET = f"SELECT {COLUMNS} FROM session WHERE session_id = :session_id"

FORGET = """
DELETE FROM session
WHERE ended IS NOT NULL AND ended <= (
    SELECT ended FROM session WHERE ended IS NOT NULL ORDER BY ended DESC LIMIT 1 OFFSET :keep
)"""


def sessions(*, principal: bool, owner: bool, live_only: bool) -> str:
    """One page, in the order of ids, by those of the filters that are in use."""
    where = ["session_id > :after"]
    if principal:
        where.append("principal = :principal")
    if owner:
        where.append("worker_id = :worker_id AND incarnation = :incarnation")
    if live_only:
        where.append("state <> 'ended'")
    return (
        f"SELECT {COLUMNS} FROM session WHERE {' AND '.join(where)} "
        "ORDER BY session_id LIMIT :limit"
    )
