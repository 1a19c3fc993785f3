"""What is said of the sandbox at start-up and by the self-test."""

import pytest

from codegen_mcp.sandbox.base import Enforcement, IsolationLevel, Probe
from codegen_mcp.sandbox.report import describe, scorecard
from codegen_mcp.sandbox.selftest.attack import Attack, Result, Verdict


def test_each_wall_stands_under_who_holds_it() -> None:
    probe = Probe(
        name="bubblewrap",
        available=True,
        level=IsolationLevel.BUBBLEWRAP,
        version="0.8.0",
        enforces={
            "filesystem": Enforcement.KERNEL,
            "memory": Enforcement.KERNEL,
            "open_files": Enforcement.RLIMIT,
            "output": Enforcement.WORKER,
            "disk": Enforcement.NONE,
        },
        checks=(("a", True, ""), ("b", False, "")),
    )
    assert describe(probe, details={"memory": "cgroup-v1 512 MiB"}, facts={"seccomp": "on"}) == [
        "sandbox: backend=bubblewrap 0.8.0 self-test=1/2 seccomp=on",
        "sandbox: enforced by kernel: filesystem memory(cgroup-v1 512 MiB); enforced by rlimit, "
        "for each process: open_files; enforced by worker: output; NOT enforced: disk",
    ]


def test_what_is_weaker_is_a_warning() -> None:
    probe = Probe(
        name="process-hardened",
        available=True,
        level=IsolationLevel.PROCESS_HARDENED,
        reason="known gaps: stat",
    )
    other = Probe(
        name="bubblewrap",
        available=False,
        level=IsolationLevel.BUBBLEWRAP,
        reason="not installed",
        fix="apt-get install bubblewrap",
    )
    assert describe(probe, rejected=[other])[2:] == [
        "sandbox: WARNING process-hardened: known gaps: stat",
        "sandbox: WARNING no bubblewrap: not installed; to get it: apt-get install bubblewrap",
    ]


def test_the_scorecard_has_a_line_for_each_attack_and_a_sum() -> None:
    attack = Attack(name="open it", wall="filesystem", source="https://example.org", code="")
    results = [
        Result(attack=attack, verdict=Verdict.HELD, seen="ENOENT", duration_s=0.1),
        Result(attack=attack, verdict=Verdict.FAILED, seen="opened", duration_s=0.1),
    ]
    assert scorecard(results) == [
        "HELD   filesystem open it  ENOENT",
        "FAILED filesystem open it  opened",
        "2 attacks: 1 HELD, 0 GAP, 1 FAILED",
    ]
    assert scorecard([]) == ["0 attacks: 0 HELD, 0 GAP, 0 FAILED"]


def test_an_attack_on_an_unknown_wall_is_refused() -> None:
    with pytest.raises(ValueError, match="moat"):
        Attack(name="swim", wall="moat", source="https://example.org", code="")
