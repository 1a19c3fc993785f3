"""The verdict is total, names one reason, and keeps the order of evidence."""

from __future__ import annotations

import os
from signal import SIGKILL, SIGXCPU

from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.limits import ResourceLimits, RunLimits
from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.cgroup import CgroupCounters
from codegen_mcp.sandbox.verdict import OUR_KILLS, Evidence, decide

counts = st.integers(min_value=0, max_value=2**40)
counters = st.builds(
    CgroupCounters,
    memory_bytes=counts,
    memory_peak_bytes=counts,
    oom_kills=st.integers(0, 3),
    parent_oom_kills=st.integers(0, 3),
    pids=st.integers(0, 300),
    pids_refused=st.integers(0, 3),
    cpu_us=counts,
    cpu_throttled=counts,
)
wait_statuses = st.one_of(
    st.none(),
    st.just(0),
    st.integers(0, 255).map(lambda code: code << 8),
    st.integers(1, 64),
    st.integers(1, 64).map(lambda signal: signal | 0x80),
    st.integers(-(2**31), 2**31),
)
evidences = st.builds(
    Evidence,
    wait_status=wait_statuses,
    our_kill=st.one_of(st.none(), st.sampled_from(EndedBy)),
    before=counters,
    after=counters,
    disk_full=st.booleans(),
    limits=st.just(ResourceLimits()),
    run_limits=st.builds(
        RunLimits,
        timeout_s=st.floats(0.1, 3600),
        output_bytes=st.integers(1, 2**40),
        cpu_s=st.one_of(st.just(0.0), st.floats(0.1, 100)),
        memory_bytes=st.one_of(st.none(), st.integers(1, 2**40)),
    ),
    file_size_signal=st.booleans(),
)


def exited_zero(evidence: Evidence) -> bool:
    status = evidence.wait_status
    return status is not None and status & 0x7F == 0 and (status >> 8) & 0xFF == 0


@given(evidences)
def test_every_evidence_has_one_reason_with_a_valid_exit_code(evidence: Evidence) -> None:
    verdict = decide(evidence)
    assert isinstance(verdict.ended_by, EndedBy)
    assert 0 <= verdict.exit_code <= 255
    assert len(set(verdict.limits_hit)) == len(verdict.limits_hit)
    assert EndedBy.EXIT not in verdict.limits_hit
    assert EndedBy.CANCELLED not in verdict.limits_hit


@given(evidences)
def test_exit_0_is_exit_whatever_else_happened(evidence: Evidence) -> None:
    verdict = decide(evidence)
    if exited_zero(evidence):
        assert (verdict.ended_by, verdict.exit_code, verdict.signal) == (EndedBy.EXIT, 0, 0)
    else:
        assert verdict.exit_code != 0
        assert verdict.remedy


@given(evidences)
def test_a_remedy_is_empty_only_when_all_is_well(evidence: Evidence) -> None:
    verdict = decide(evidence)
    well = exited_zero(evidence) and not verdict.limits_hit
    assert (verdict.remedy == "") == well


@given(evidences)
def test_our_own_kill_outranks_what_it_looks_like(evidence: Evidence) -> None:
    if evidence.our_kill in OUR_KILLS and not exited_zero(evidence):
        assert decide(evidence).ended_by is evidence.our_kill


@given(evidences)
def test_memory_then_pids_then_disk_then_signal_then_exit(evidence: Evidence) -> None:
    if exited_zero(evidence) or evidence.our_kill in OUR_KILLS:
        return
    verdict = decide(evidence)
    before, after = evidence.before, evidence.after
    oom = after.oom_kills > before.oom_kills or after.parent_oom_kills > before.parent_oom_kills
    status = evidence.wait_status
    lost = status is None or status & 0x7F == 0x7F
    for_disk = evidence.our_kill is EndedBy.DISK
    if lost and not oom and not for_disk:
        expected = EndedBy.WORKER_LOST
    elif EndedBy.CPU in verdict.limits_hit and (
        verdict.signal == SIGXCPU or (verdict.signal == SIGKILL and not oom)
    ):
        expected = EndedBy.CPU
    elif oom:
        expected = EndedBy.MEMORY
    elif for_disk:
        expected = EndedBy.DISK
    elif after.pids_refused > before.pids_refused:
        expected = EndedBy.PIDS
    elif evidence.disk_full:
        expected = EndedBy.DISK
    elif status is not None and os.WIFSIGNALED(status & 0xFFFF):
        expected = EndedBy.SIGNAL
    else:
        expected = EndedBy.EXIT
    assert verdict.ended_by is expected
