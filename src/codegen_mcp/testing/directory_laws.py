"""The laws of ``coordinator/directory/base.py`` as a suite for any directory.

A law gets a rig with an empty directory and asserts; its name says what must hold. Every directory
has to pass ``DirectoryMachine`` of ``testing/directory_machine.py`` as well: the same promises,
whatever the order in which several coordinators and workers, dead ones among them, do things.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from codegen_mcp.testing import directory_owner_laws as owners
from codegen_mcp.testing import directory_row_laws as rows
from codegen_mcp.testing.directory_rig import DirectoryRig

Law = Callable[[DirectoryRig], Awaitable[None]]

LAWS: Sequence[Law] = (
    owners.a_start_keeps_its_incarnation,
    owners.of_starts_that_register_at_once_each_gets_its_own,
    owners.beats_count_signs_of_life,
    owners.a_start_that_has_beaten_since_is_not_declared_dead,
    owners.the_dead_never_return,
    owners.a_later_start_makes_those_before_it_dead,
    owners.only_what_nobody_live_holds_is_taken_over,
    owners.of_many_who_take_over_one_wins,
    owners.a_takeover_brings_what_was_committed_until_then,
    owners.a_released_session_belongs_to_nobody,
    owners.commits_move_what_they_name_and_nothing_backwards,
    owners.each_commit_of_a_batch_is_judged_for_itself,
    rows.a_session_is_reserved_once_and_as_it_was_given,
    rows.what_is_no_new_session_is_refused,
    rows.a_confirmed_session_is_live,
    rows.quotas_hold_under_races,
    rows.adhoc_sessions_count_as_one,
    rows.ended_stays_ended,
    rows.an_old_epoch_ends_nothing,
    rows.sessions_are_listed_by_id_in_pages,
    rows.only_ended_rows_are_forgotten_the_oldest_first,
    rows.all_that_was_acknowledged_is_there_after_a_restart,
)
