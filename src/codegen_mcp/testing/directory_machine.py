"""Everything that may happen to a directory, in any order, against what it has acknowledged.

Several workers with starts that do not know they are dead, several coordinators that decide by what
they read long ago, requests that arrive late or whose answer is lost, several at once, and
restarts. The machine trusts nothing but answers: what was acknowledged must hold from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from codegen_mcp.coordinator.directory.base import Commit, Owner, RowState, SessionRow
from codegen_mcp.core.errors import Conflict, Full
from codegen_mcp.testing.directory_history import Hearing, History
from codegen_mcp.testing.directory_rig import DirectoryRig, new_row

T = TypeVar("T")
Request = Callable[[], Coroutine[Any, Any, None]]

WORKERS = ("u", "v", "w")
PRINCIPALS = ("p", "q")
MAX_SESSIONS = 3
LATE = 6
"""Requests that are under way at once, at most."""

workers = st.sampled_from(WORKERS)
picks = st.integers(0, 10**6)
"""Which of what there is at that moment."""


class DirectoryMachine(RuleBasedStateMachine):
    """A subclass says how to make the rig. Each answer goes to the history, which judges it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.rig = self.make_rig()
        self.run(self.rig.__aenter__())
        self.history = History()
        self.late: list[Request] = []
        self.count = 0

    def make_rig(self) -> DirectoryRig:
        """Return a rig of an empty directory that is not open yet."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close it."""
        self.run(self.rig.__aexit__(None, None, None))
        self.runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the machine's own loop."""
        return self.runner.run(work)

    def owner(self, pick: int) -> Owner:
        """Any start there ever was, or one that never was."""
        owners = [*self.history.starts, Owner(worker_id="nobody", incarnation=1)]
        return owners[pick % len(owners)]

    def row(self, pick: int) -> SessionRow:
        """Any version of any session that somebody has read once."""
        return self.history.read[pick % len(self.history.read)]

    def new_id(self) -> str:
        """An id that was never used."""
        self.count += 1
        return f"s{self.count}"

    # ---- requests: each asks the directory once, and gives the answer to the history

    async def _register(self, worker_id: str, start_id: str) -> None:
        incarnation = await self.rig.directory.register(worker_id, start_id)
        self.history.registered(worker_id, start_id, incarnation)

    async def _beat(self, owner: Owner) -> None:
        self.history.beaten(owner, await self.rig.directory.beat(owner))

    async def _declare_dead(self, owner: Owner, at_beat: int | None) -> None:
        try:
            rows = await self.rig.directory.declare_dead(owner, at_beat=at_beat)
        except Conflict:
            self.history.spared(owner, at_beat)
        else:
            self.history.declared_dead(owner, at_beat, rows)

    async def _reserve(self, row: SessionRow) -> None:
        try:
            made = await self.rig.directory.reserve(row, max_sessions=MAX_SESSIONS)
        except Full:
            self.history.out_of_quota(row, MAX_SESSIONS)
        else:
            self.history.reserved(row, made)

    async def _confirm(self, row: SessionRow, owner: Owner) -> None:
        done = await self.rig.directory.confirm(row.session_id, owner, row.epoch)
        self.history.confirmed(row, owner, done)

    async def _acquire(self, row: SessionRow, owner: Owner) -> None:
        taken = await self.rig.directory.acquire(row.session_id, owner, row.epoch)
        self.history.acquired(row, owner, taken)

    async def _commit(self, owner: Owner, rows: list[SessionRow]) -> None:
        commits = []
        for row in rows:
            self.count += 1
            commits.append(
                Commit(
                    session_id=row.session_id,
                    epoch=row.epoch,
                    checkpoint_id=f"c{self.count}",
                    sequence=self.count,
                )
            )
        done = await self.rig.directory.commit(owner, commits)
        assert len(done) == len(commits)
        for row, commit, accepted in zip(rows, commits, done, strict=True):
            self.history.committed(row, owner, commit, accepted)

    async def _release(self, row: SessionRow, owner: Owner) -> None:
        done = await self.rig.directory.release(row.session_id, owner, row.epoch)
        self.history.released(row, owner, done)

    async def _end(self, row: SessionRow) -> None:
        self.history.ended(row, await self.rig.directory.end(row.session_id, row.epoch))

    def request(self, data: st.DataObject) -> Request:
        """Draw one."""
        kinds = ["register", "beat", "dead", "reserve"]
        if self.history.read:
            kinds += ["confirm", "acquire", "acquire", "commit", "commit", "release", "end"]
        kind = data.draw(st.sampled_from(kinds))
        if kind == "register":
            worker_id, start_id = data.draw(workers), data.draw(st.sampled_from("12"))
            return lambda: self._register(worker_id, start_id)
        if kind == "reserve":
            state = data.draw(st.sampled_from((RowState.CREATING, RowState.LIVE)))
            new = new_row(
                self.new_id(),
                self.owner(data.draw(picks)),
                principal=data.draw(st.sampled_from(PRINCIPALS)),
                state=state,
                adhoc=data.draw(st.booleans()),
            )
            return lambda: self._reserve(new)
        if kind in ("beat", "dead"):
            owner = self.owner(data.draw(picks))
            at_beat = data.draw(st.none() | st.integers(0, 3))
            if kind == "beat":
                return lambda: self._beat(owner)
            return lambda: self._declare_dead(owner, at_beat)
        row = self.row(data.draw(picks))
        if kind == "end":
            return lambda: self._end(row)
        # Most often whoever holds it, or held it: a stranger is refused by all.
        owner = row.owner or self.owner(data.draw(picks))
        if kind == "acquire" or data.draw(st.integers(0, 4)) == 0:
            owner = self.owner(data.draw(picks))
        if kind == "commit":
            rows = [row, *(self.row(data.draw(picks)) for _ in range(data.draw(st.integers(0, 2))))]
            return lambda: self._commit(owner, rows)
        return {
            "confirm": lambda: self._confirm(row, owner),
            "acquire": lambda: self._acquire(row, owner),
            "release": lambda: self._release(row, owner),
        }[kind]

    # ---- rules

    @rule(worker_id=workers, start_id=st.sampled_from("123"))
    def a_worker_starts(self, worker_id: str, start_id: str) -> None:
        """Anew, or once more after a lost connection."""
        self.run(self._register(worker_id, start_id))

    @rule(data=st.data())
    def a_request_is_done(self, data: st.DataObject) -> None:
        """At once."""
        self.run(self.request(data)())

    @rule(
        pick=picks,
        principal=st.sampled_from(PRINCIPALS),
        adhoc=st.lists(st.booleans(), min_size=2, max_size=MAX_SESSIONS + 1),
        at_once=st.booleans(),
    )
    def a_principal_wants_many(
        self, pick: int, principal: str, adhoc: list[bool], at_once: bool
    ) -> None:
        """More than it may have, one after the other or all at once."""
        owner = self.owner(pick)
        rows = [new_row(self.new_id(), owner, principal=principal, adhoc=one) for one in adhoc]

        async def all_of_them() -> None:
            await asyncio.gather(*(self._reserve(row) for row in rows))

        if at_once:
            self.history.hear(Hearing.UNORDERED)
            self.run(all_of_them())
            return
        for row in rows:
            self.run(self._reserve(row))
            self.all_that_was_acknowledged_holds()

    @rule(data=st.data(), number=st.integers(2, 4))
    def several_are_done_at_once(self, data: st.DataObject, number: int) -> None:
        """In an order that nobody knows."""
        requests = [self.request(data) for _ in range(number)]

        async def all_of_them() -> None:
            await asyncio.gather(*(request() for request in requests))

        self.history.hear(Hearing.UNORDERED)
        self.run(all_of_them())

    @rule(pick=picks, committing=st.booleans(), other=picks)
    @precondition(lambda self: self.history.read)
    def a_takeover_races_with_its_causes(self, pick: int, committing: bool, other: int) -> None:
        """The owner's last commit, its death and the takeover, all at once."""
        row = self.row(pick)
        if row.owner is None:
            return
        owner, taker = row.owner, self.owner(other)

        async def race() -> None:
            await asyncio.gather(
                self._acquire(row, taker),
                self._commit(owner, [row] if committing else []),
                self._declare_dead(owner, None),
                self._acquire(row, taker),
            )

        self.history.hear(Hearing.UNORDERED)
        self.run(race())

    @rule(pick=picks, other=picks, dead=st.booleans())
    @precondition(lambda self: self.history.read)
    def a_session_moves_on_and_its_past_speaks(self, pick: int, other: int, dead: bool) -> None:
        """Its last holder leaves or dies, another takes it, and the last one's commit comes."""
        row = self.row(pick)
        if row.owner is None:
            return
        owner = row.owner
        requests: list[Request] = [
            lambda: self._declare_dead(owner, None) if dead else self._release(row, owner),
            lambda: self._acquire(row, self.owner(other)),
            lambda: self._commit(owner, [row]),
        ]
        for request in requests:
            self.run(request())
            self.all_that_was_acknowledged_holds()

    @rule(data=st.data())
    @precondition(lambda self: len(self.late) < LATE)
    def a_request_is_sent_and_comes_late(self, data: st.DataObject) -> None:
        """It is on its way."""
        self.late.append(self.request(data))

    @rule(pick=picks)
    @precondition(lambda self: self.late)
    def a_late_request_arrives(self, pick: int) -> None:
        """Any of them: they overtake each other."""
        self.run(self.late.pop(pick % len(self.late))())

    @rule(data=st.data())
    def an_answer_is_lost(self, data: st.DataObject) -> None:
        """Its caller learns nothing; what it did, all others may read."""
        request = self.request(data)
        self.history.hear(Hearing.DEAF)
        self.run(request())

    @rule()
    def the_coordinator_restarts(self) -> None:
        """On the same directory."""
        self.run(self.rig.reopen())

    @rule(keep=st.integers(0, 2))
    def old_rows_are_forgotten(self, keep: int) -> None:
        """Only ended ones."""
        self.history.forgotten(keep, self.run(self.rig.directory.forget(keep)))

    def all_rows(self) -> list[SessionRow]:
        """Page by page."""

        async def pages() -> list[SessionRow]:
            rows: list[SessionRow] = []
            while page := await self.rig.directory.sessions(
                live_only=False, after=rows[-1].session_id if rows else "", limit=3
            ):
                rows += page
            return rows

        return self.run(pages())

    # ---- what must hold after each

    @invariant()
    def all_that_was_acknowledged_holds(self) -> None:
        """In what anybody can read."""
        beats = self.run(self.rig.directory.beats())
        self.history.seen(self.all_rows(), beats)

    @invariant()
    def quotas_hold(self) -> None:
        """Named ones, and one more if there is any adhoc one."""
        for principal in PRINCIPALS:
            rows = self.run(self.rig.directory.sessions(principal=principal))
            adhoc = [row.adhoc for row in rows]
            assert adhoc.count(False) + any(adhoc) <= MAX_SESSIONS
