"""The laws of the sandbox interface, over every backend, as session users and an ordinary user."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest

from codegen_mcp.sandbox import registry
from codegen_mcp.testing.container_image import build_image
from codegen_mcp.testing.sandbox_child import run_as
from codegen_mcp.testing.sandbox_ground import Ground, prepared_ground
from codegen_mcp.testing.sandbox_laws import LAWS, SAMPLE, Law
from codegen_mcp.testing.sandbox_rig import Rig

NAMES = [name for name in registry.BACKENDS if name != "process-bare"]
SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
SLOW = ("gvisor", "container")
"""These boot in half a second and more: some of the laws by default, all with --soak."""
CASES = [
    pytest.param(name, law, id=f"{name}-{law.__name__}")
    for name in NAMES
    for law in (SAMPLE if name in SLOW and not SOAK else LAWS)
]
_probed: dict[str, str] = {}


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    if SOAK:
        build_image()
    with prepared_ground() as prepared:
        yield prepared


@pytest.fixture(scope="module")
def answers(ground: Ground) -> Callable[[str], Mapping[str, Any]]:
    """What a process of an ordinary user says of a backend, asked when it is needed."""

    @cache
    def ask(name: str) -> Mapping[str, Any]:
        done = run_as(ground, ["sample" if name in SLOW and not SOAK else "laws", name])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    return ask


@pytest.mark.parametrize(("name", "law"), CASES)
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
@pytest.mark.parametrize(("name", "law"), CASES)
def test_the_law_holds_for_an_ordinary_user(
    answers: Callable[[str], Mapping[str, Any]], name: str, law: Law
) -> None:
    answer = answers(name)
    if "unavailable" in answer:
        pytest.skip(answer["unavailable"])
    assert not answer["results"][law.__name__], answer["results"][law.__name__]
