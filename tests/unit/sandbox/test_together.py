"""Attacks that share a run: only what said HELD counts, and none meets another's leavings."""

import subprocess
import sys

from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.selftest.attack import Attack
from codegen_mcp.sandbox.selftest.catalogue import QUICK
from codegen_mcp.sandbox.selftest.together import can_share, held_in, shared_program
from codegen_mcp.sandbox.selftest.tools import environment


def attack(name: str, code: str, **fields: object) -> Attack:
    return Attack(name=name, wall="processes", source="none", code=code, **fields)


def tried(*attacks: Attack) -> dict[str, str]:
    facts = {"guest_outside": "/", "template_outside": "/"}
    done = subprocess.run(
        [sys.executable, "-c", shared_program(attacks).decode()],
        env={**environment(facts), "VIRTUAL_ENV": "/"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return dict(held_in(done.stdout, attacks))


def test_only_an_attack_that_said_held_counts() -> None:
    found = tried(
        attack("held", "held('refused:', 1)"),
        attack("broken", "broken('got through')"),
        attack("broken after all", "print('HELD first'); broken('then not')"),
        attack("killed", "os.kill(os.getpid(), signal.SIGKILL)"),
        attack("silent", "pass"),
        attack("failed", "1 / 0"),
        attack("pretends to be another", "print('ATTACK 1 HELD not mine')"),
        attack("held behind all of them", "held()"),
    )
    assert found == {"held": "refused: 1", "held behind all of them": ""}


def test_none_meets_descriptors_or_names_of_another() -> None:
    found = tried(
        attack("leaves things", "left = os.open('/', os.O_RDONLY); os.chdir('/'); held()"),
        attack("looks for them", "held() if 'left' not in globals() else broken('left')"),
        *[one for one in QUICK if "descriptors" in one.name and can_share(one)],
    )
    assert {"leaves things", "looks for them", "use inherited or guessed descriptors"} == {*found}


def test_what_ends_otherwise_or_is_asked_again_runs_alone() -> None:
    assert can_share(attack("plain", "held()"))
    assert not can_share(attack("bomb", "", ends_by=(EndedBy.TIMEOUT,)))
    assert not can_share(attack("two runs", "held()", then="held()"))
    assert not can_share(attack("takes the guest along", "held()", may_lose_guest=True))
    assert sum(can_share(one) for one in QUICK) > len(QUICK) / 2
