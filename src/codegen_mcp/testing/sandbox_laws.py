"""The laws of ``sandbox/base.py`` as a suite for any backend: each is one coroutine function.

A law gets a rig with the backend and asserts; its name says what must hold.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from codegen_mcp.testing import sandbox_egress_laws as egress
from codegen_mcp.testing import sandbox_freeze_laws as freezes
from codegen_mcp.testing import sandbox_life_laws as lives
from codegen_mcp.testing import sandbox_run_laws as runs
from codegen_mcp.testing.sandbox_rig import Rig

Law = Callable[[Rig], Awaitable[None]]

SAMPLE: Sequence[Law] = (
    runs.bytes_arrive_exactly,
    runs.what_a_run_leaves_behind_is_killed_and_counted,
    lives.a_guest_that_dies_loses_the_sandbox,
    freezes.what_is_frozen_stands_still_and_goes_on_afterwards,
)
"""For backends that take long to boot, where there is little time."""
LAWS: Sequence[Law] = (
    runs.bytes_arrive_exactly,
    runs.exit_codes_are_those_of_the_program,
    runs.signals_are_named,
    runs.a_timeout_ends_the_run_and_keeps_what_was_printed,
    runs.too_much_output_ends_the_run_and_is_counted,
    runs.a_cpu_budget_ends_the_run,
    runs.what_a_run_leaves_behind_is_killed_and_counted,
    runs.a_cancelled_run_leaves_nothing,
    runs.a_run_whose_sink_fails_leaves_nothing,
    runs.stdin_is_what_was_given_and_then_ends,
    runs.stdin_can_be_written_while_the_run_reads_it,
    runs.a_descriptor_given_as_stdin_stays_its_callers,
    runs.arguments_environment_and_directory_arrive,
    runs.files_and_programs_run,
    runs.each_run_is_a_fresh_process_on_the_same_files,
    runs.one_run_at_a_time,
    lives.a_guest_that_dies_loses_the_sandbox,
    lives.closing_leaves_nothing,
    lives.sandboxes_do_not_see_each_other,
    lives.a_boot_that_fails_leaves_nothing,
    lives.a_cancelled_boot_leaves_nothing,
    lives.nothing_accumulates,
    lives.usage_is_read_while_a_run_goes_on,
    freezes.what_is_frozen_stands_still_and_goes_on_afterwards,
    freezes.a_frozen_sandbox_can_be_closed,
    freezes.a_freeze_that_is_cancelled_is_undone,
    freezes.a_deadline_that_passes_in_the_freeze_ends_the_run_afterwards,
    lives.a_worker_that_is_root_never_runs_code_as_itself,
    egress.an_entrance_answers_to_this_sandbox_and_only_while_somebody_listens,
)
