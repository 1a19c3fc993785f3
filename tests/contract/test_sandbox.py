"""The laws of the sandbox interface, over every backend, as session users and an ordinary user."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from codegen_mcp.sandbox import registry
from codegen_mcp.testing.sandbox_child import run_as
from codegen_mcp.testing.sandbox_ground import Ground, prepared_ground
from codegen_mcp.testing.sandbox_laws import LAWS, Law
from codegen_mcp.testing.sandbox_rig import Rig

NAMES = [name for name in registry.BACKENDS if name != "process-bare"]
_probed: dict[str, str] = {}


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with prepared_ground() as prepared:
        yield prepared


@pytest.fixture(scope="module")
def answers(ground: Ground) -> Mapping[str, Any]:
    """What a process of an ordinary user says of each backend."""
    found = {}
    for name in NAMES:
        done = run_as(ground, ["laws", name])
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", NAMES)
async def test_the_law_holds(ground: Ground, name: str, law: Law) -> None:
    with ground.config() as config:
        backend = registry.create(name, config)
        if name not in _probed:
            probe = await backend.probe()
            _probed[name] = "" if probe.available else probe.reason
        if _probed[name]:
            pytest.skip(_probed[name])
        async with Rig(backend, config, ground.identities) as rig:
            await law(rig)


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests above ran as an ordinary user")
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_law_holds_for_an_ordinary_user(
    answers: Mapping[str, Any], name: str, law: Law
) -> None:
    answer = answers[name]
    if "unavailable" in answer:
        pytest.skip(answer["unavailable"])
    assert not answer["results"][law.__name__], answer["results"][law.__name__]
