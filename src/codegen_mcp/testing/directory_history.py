"""What a directory has acknowledged, and the judge of everything it says later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from codegen_mcp.coordinator.directory.base import Commit, Owner, RowState, SessionRow

_HELD = (RowState.CREATING, RowState.LIVE)


class Hearing(Enum):
    """How much the answers of a step say."""

    EXACT = auto()
    """One request: its answer is decided by what was read before."""
    UNORDERED = auto()
    """Several at once: only what holds in any order is certain."""
    DEAF = auto()
    """The answer was lost: what was asked for may have been done, or not."""


@dataclass(slots=True)
class _Step:
    """What was answered since everything was read last."""

    dead: set[Owner] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    confirmed: set[tuple[str, int]] = field(default_factory=set)
    """With epochs; so are those that were released."""
    released: set[tuple[str, int]] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    taken: list[SessionRow] = field(default_factory=list)
    accepted: dict[str, list[tuple[int, Commit]]] = field(default_factory=dict)
    """By session, with epochs."""
    unheard: dict[str, list[Commit]] = field(default_factory=dict)


class History:
    """Each method takes in one answer, and asserts that it fits those before it.

    ``seen`` comes after each step, with everything that can be read then.
    """

    def __init__(self) -> None:
        self.starts: list[Owner] = []
        """Every start there ever was, alive or not."""
        self.read: list[SessionRow] = []
        """Every version of every row that anybody saw, and that is not forgotten."""
        self._rows: dict[str, SessionRow] = {}
        self._beats: Mapping[Owner, int] = {}
        self._dead: set[Owner] = set()
        self._start_ids: dict[Owner, str] = {}
        self._owners: dict[tuple[str, int], Owner] = {}
        self._hearing = Hearing.EXACT
        self._step = _Step()

    def hear(self, how: Hearing) -> None:
        """Judge the answers of this step so, until everything is read again."""
        self._hearing = how

    @property
    def _exact(self) -> bool:
        return self._hearing is Hearing.EXACT

    @property
    def _deaf(self) -> bool:
        return self._hearing is Hearing.DEAF

    # ---- starts

    def registered(self, worker_id: str, start_id: str, incarnation: int) -> None:
        """An incarnation has one start, a live start one incarnation; the dead get a new one."""
        if self._deaf:
            return
        owner = Owner(worker_id=worker_id, incarnation=incarnation)
        assert owner not in self._dead, f"{owner} returned from the dead"
        assert self._start_ids.setdefault(owner, start_id) == start_id, f"{owner} is two starts"
        if self._exact:
            of_worker = (one.incarnation for one in self.starts if one.worker_id == worker_id)
            last = max(of_worker, default=0)
            current = Owner(worker_id=worker_id, incarnation=last)
            known = self._start_ids.get(current) if current in self._beats else ""
            allowed = {start_id: {last}, None: {last, last + 1}}.get(known, {last + 1})
            assert incarnation in allowed, f"{owner} after {current} with start {known!r}"
        self._meet(owner)

    def beaten(self, owner: Owner, counted: bool) -> None:
        """A beat counts for those who live."""
        if self._exact:
            assert counted == (owner in self._beats)
        if counted and not self._deaf:
            assert owner not in self._dead, f"{owner} beats and is dead"

    def spared(self, owner: Owner, at_beat: int | None) -> None:
        """It was not declared dead, because of a beat."""
        assert at_beat is not None
        assert owner not in self._dead
        if self._exact:
            assert self._beats[owner] != at_beat

    def declared_dead(self, owner: Owner, at_beat: int | None, rows: Sequence[SessionRow]) -> None:
        """All that it held is lost, and told."""
        if self._deaf:
            return
        self._step.dead.add(owner)
        assert all(row.owner == owner and row.state is RowState.LOST for row in rows)
        if self._exact:
            assert at_beat in (None, self._beats.get(owner, at_beat))
            held = [row for _, row in sorted(self._rows.items()) if row.owner == owner]
            assert list(rows) == [replace(row, state=RowState.LOST) for row in held]

    # ---- sessions

    def reserved(self, row: SessionRow, made: bool) -> None:
        """For those who live."""
        assert row.owner is not None
        if self._exact:
            assert made == (row.owner in self._beats)
        if made and not self._deaf:
            assert row.owner not in self._dead
            self._own(row)
            self._step.made.add(row.session_id)
            self._step.touched.add(row.session_id)

    def out_of_quota(self, row: SessionRow, max_sessions: int) -> None:
        """It would have been too many."""
        if self._exact:
            live = [one for one in self._rows.values() if one.state is not RowState.ENDED]
            mine = [one.adhoc for one in [*live, row] if one.principal == row.principal]
            assert mine.count(False) + any(mine) > max_sessions

    def confirmed(self, row: SessionRow, owner: Owner, done: bool) -> None:
        """By whoever holds it and nobody else."""
        if self._held(row, owner, done):
            self._step.confirmed.add((row.session_id, row.epoch))

    def released(self, row: SessionRow, owner: Owner, done: bool) -> None:
        """By whoever holds it and nobody else."""
        if self._held(row, owner, done):
            self._step.released.add((row.session_id, row.epoch))

    def committed(self, row: SessionRow, owner: Owner, commit: Commit, accepted: bool) -> None:
        """By whoever holds it and nobody else: no late commit is accepted."""
        if self._deaf:
            self._step.unheard.setdefault(row.session_id, []).append(commit)
            return
        if self._held(row, owner, accepted):
            self._step.accepted.setdefault(row.session_id, []).append((commit.epoch, commit))

    def acquired(self, row: SessionRow, owner: Owner, taken: SessionRow | None) -> None:
        """An epoch goes to one owner for ever, with all that was committed before."""
        if self._exact:
            now = self._rows.get(row.session_id)
            may = (
                now is not None
                and now.state is not RowState.ENDED
                and now.epoch == row.epoch
                and now.owner not in self._beats
                and owner in self._beats
            )
            assert (taken is not None) == may, f"{owner} took {taken}; now {now}"
        if taken is None or self._deaf:
            return
        assert (taken.session_id, taken.epoch) == (row.session_id, row.epoch + 1)
        assert (taken.owner, taken.state) == (owner, RowState.LIVE)
        assert owner not in self._dead
        self._own(taken)
        self._step.touched.add(row.session_id)
        self._step.taken.append(taken)

    def ended(self, row: SessionRow, done: bool) -> None:
        """Under the epoch that it is held under."""
        if self._exact:
            now = self._rows.get(row.session_id)
            assert done == (now is not None and now.epoch == row.epoch)
        if done and not self._deaf:
            self._step.touched.add(row.session_id)
            self._step.ended.add(row.session_id)

    # ---- everything

    def forgotten(self, keep: int, count: int) -> None:
        """So many ended rows are gone, whose ids nobody uses again."""
        ended = [row for row in self._rows.values() if row.state is RowState.ENDED]
        assert count == max(0, len(ended) - keep)
        self._step.touched |= {row.session_id for row in ended}

    def seen(self, rows: Sequence[SessionRow], beats: Mapping[Owner, int]) -> None:
        """All of it, after a step."""
        self._see_starts(beats)
        now = {row.session_id: row for row in rows}
        assert list(now) == sorted(now)
        assert len(now) == len(rows)
        assert self._step.made <= now.keys(), "a session that was made is not there"
        for session_id in self._rows.keys() - now.keys():
            assert self._rows[session_id].state is RowState.ENDED
            assert session_id in self._step.touched
            self.read = [row for row in self.read if row.session_id != session_id]
        for row in rows:
            self._see_row(row)
        for taken in self._step.taken:
            assert now[taken.session_id].epoch >= taken.epoch, "an epoch was taken back"
            assert taken.checkpoint_id in self._possible(taken.session_id, taken.epoch)
        self._rows = now
        self._step = _Step()
        self._hearing = Hearing.EXACT

    def _see_starts(self, beats: Mapping[Owner, int]) -> None:
        for owner in beats:
            assert owner not in self._dead | self._step.dead, f"{owner} lives, and was dead"
            self._meet(owner)
        assert len({owner.worker_id for owner in beats}) == len(beats), "two starts live"
        gone = self._beats.keys() - beats.keys()
        if self._exact:
            assert gone <= self._step.dead, f"{gone - self._step.dead} died of nothing"
        self._dead |= self._step.dead | {owner for owner in self.starts if owner not in beats}
        self._beats = beats

    def _see_row(self, row: SessionRow) -> None:
        before = self._rows.get(row.session_id)
        self._own(row)
        if row not in self.read:
            self.read.append(row)
        if row.state is RowState.ENDED:
            assert row.owner is None
        elif row.owner is not None:
            assert (row.state in _HELD) == (row.owner in self._beats), f"{row} in {self._beats}"
        if row.session_id in self._step.ended:
            assert row.state is RowState.ENDED
        if (row.session_id, row.epoch) in self._step.released:
            assert row.owner is None, f"{row} was released"
        if (row.session_id, row.epoch) in self._step.confirmed:
            assert row.state is not RowState.CREATING, f"{row} was confirmed"
        if before is None:
            assert row.epoch == 1
            return
        assert row.epoch >= before.epoch, "an epoch went back"
        assert row.checkpoint_id in self._possible(row.session_id, row.epoch + 1), (
            f"{row} after {before}, accepted {self._step.accepted}"
        )
        accepted = [one.sequence for _, one in self._step.accepted.get(row.session_id, ())]
        assert row.sequence >= max([before.sequence, *accepted])
        if before.state is RowState.ENDED:
            assert row == before, "what had ended changed"
        if row.epoch == before.epoch:
            assert row.owner in (before.owner, None)
        if self._exact and row.session_id not in self._step.touched:
            assert row in (before, replace(before, state=RowState.LOST)), "changed by nobody"

    def _possible(self, session_id: str, epoch: int) -> set[str]:
        """Checkpoints that an owner of this epoch may have found."""
        earlier = [one for one in self._step.accepted.get(session_id, ()) if one[0] < epoch]
        newest = max((one[0] for one in earlier), default=0)
        possible = {one.checkpoint_id for at, one in earlier if at == newest}
        if not earlier:
            possible = {self._rows[session_id].checkpoint_id}
        return possible | {one.checkpoint_id for one in self._step.unheard.get(session_id, ())}

    def _held(self, row: SessionRow, owner: Owner, done: bool) -> bool:
        """Something that only its holder may do; whether that is known to be done."""
        if self._exact:
            assert done == self._holds(row, owner), f"{owner} holds {row}: {not done}"
        if not done or self._deaf:
            return False
        self._check_holder(row, owner)
        self._step.touched.add(row.session_id)
        return True

    def _holds(self, row: SessionRow, owner: Owner) -> bool:
        now = self._rows.get(row.session_id)
        return (
            now is not None
            and (now.owner, now.epoch) == (owner, row.epoch)
            and now.state in _HELD
            and owner in self._beats
        )

    def _check_holder(self, row: SessionRow, owner: Owner) -> None:
        """What is certain of whoever was said to hold it, in any order."""
        before = self._rows[row.session_id]
        assert owner not in self._dead, f"{owner} is dead and changed {row.session_id!r}"
        assert before.state is not RowState.ENDED
        assert row.epoch >= before.epoch, f"{owner} changed {row.session_id!r} under an old epoch"
        assert self._owners.setdefault((row.session_id, row.epoch), owner) == owner

    def _own(self, row: SessionRow) -> None:
        """No two owners in one epoch, ever."""
        if row.owner is None:
            return
        owner = self._owners.setdefault((row.session_id, row.epoch), row.owner)
        assert owner == row.owner, (
            f"{owner} and {row.owner} have {row.session_id!r} in epoch {row.epoch}"
        )

    def _meet(self, owner: Owner) -> None:
        """A start that lives or lived; those before it are dead."""
        if owner not in self.starts:
            self.starts.append(owner)
        self._step.dead |= {
            one
            for one in self.starts
            if one.worker_id == owner.worker_id and one.incarnation < owner.incarnation
        }
