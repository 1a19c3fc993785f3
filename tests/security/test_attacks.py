"""Every attack of the catalogue on every backend, as session users of root and as an ordinary user.

A wall that falls fails its test, and so does a known gap that closes: then the catalogue says less
than is true.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from codegen_mcp.sandbox import registry
from codegen_mcp.sandbox.selftest.attack import Attack, Verdict
from codegen_mcp.sandbox.selftest.catalogue import ATTACKS, ESCAPES
from codegen_mcp.sandbox.selftest.runner import Campaign, conditions, known_gaps
from codegen_mcp.sandbox.volumes.registry import probe as probe_volumes
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.testing.sandbox_child import run_as
from codegen_mcp.testing.sandbox_ground import Ground, prepared_ground

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
VARYING = ("gvisor", "container")
"""What these refuse differs from version to version: a gap of theirs may be closed."""
TARGETS = [
    *(
        [
            ("gvisor", "session users", ATTACKS),
            ("gvisor", "ordinary user", ATTACKS),
            ("container", "session users", ATTACKS),
        ]
        if SOAK
        else []
    ),
    ("bubblewrap", "session users", ATTACKS),
    ("bubblewrap", "ordinary user", ATTACKS),
    ("bubblewrap-noproc", "ordinary user", ESCAPES),
    ("process-hardened", "session users", ATTACKS),
    ("process-hardened", "ordinary user", ATTACKS),
]
CASES = [
    pytest.param(name, user, attack, id=f"{name}-{user}-{attack.name}")
    for name, user, attacks in TARGETS
    if user == "ordinary user" or os.geteuid() == 0
    for attack in attacks
]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with prepared_ground() as prepared:
        yield prepared


async def attack_here(ground: Ground, name: str) -> dict[str, Any]:
    volumes = await probe_volumes(VolumeConfig(state_directory=ground.state, reserve_bytes=0))
    loop = any(one.name == "loop" and one.available for one in volumes)
    with ground.config(volume="loop" if loop else "") as config:
        backend = registry.create(name, config)
        probe = await backend.probe()
        if not probe.available:
            return {"unavailable": probe.reason}
        results = await Campaign(backend, config, probe.level).run(ATTACKS)
        return {
            "conditions": conditions(config, probe.level),
            "results": {one.attack.name: (one.verdict.value, one.seen) for one in results},
        }


def attack_as_user(ground: Ground, name: str) -> dict[str, Any]:
    done = run_as(ground, ["attacks", name])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def campaign(ground: Ground):
    """Runs one campaign for each backend and kind of user, when its first attack is asked for."""

    @cache
    def run(name: str, user: str) -> dict[str, Any]:
        if user == "session users":
            return asyncio.run(attack_here(ground, name))
        return attack_as_user(ground, name)

    return run


@pytest.mark.parametrize(("name", "user", "attack"), CASES)
def test_the_wall_holds_but_for_its_known_gaps(
    campaign, name: str, user: str, attack: Attack
) -> None:
    found = campaign(name, user)
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    verdict, seen = found["results"][attack.name]
    gaps = known_gaps(attack, frozenset(found["conditions"]))
    expected = {Verdict.GAP if gaps else Verdict.HELD}
    if attack.depends_on_load or name in VARYING:
        expected.add(Verdict.HELD)
    assert verdict in expected, seen


def test_every_attack_names_its_source_and_its_name_is_its_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    for attack in ATTACKS:
        assert "https://" in attack.source or "CVE-" in attack.source, attack.name


def test_at_least_eight_attacks_are_part_of_every_probe() -> None:
    assert sum(attack.quick for attack in ATTACKS) >= 8
