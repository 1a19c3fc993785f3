"""One real engine with an internet for all tests of this folder."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from codegen_mcp.testing.egress_rig import VALUE, EgressRig, egress_rig
from codegen_mcp.testing.outer_network import (
    NEAR,
    OTHER,
    PUBLIC,
    OuterNetwork,
    outer_network,
    why_not,
)
from codegen_mcp.testing.worker import state_directory

NAMES = {
    "web.example": PUBLIC,
    "api.example": PUBLIC,
    "other.example": OTHER,
    "index.example": PUBLIC,
    "npm.example": PUBLIC,
    "git.example": PUBLIC,
    "meta.example": "169.254.169.254",
}


@pytest.fixture(scope="package")
def network() -> Iterator[OuterNetwork]:
    if why_not():
        pytest.skip(why_not())
    with outer_network() as made:
        yield made


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def rig(network: OuterNetwork) -> AsyncIterator[EgressRig]:
    async with state_directory() as state:
        secrets = state.parent / "secrets.toml"
        secrets.write_text(
            f'[API_TOKEN]\nvalue = "{VALUE}"\nhosts = ["api.example"]\n'
            f'[ALICES_TOKEN]\nvalue = "{VALUE[::-1]}"\nhosts = ["api.example"]\nusers = ["alice"]\n'
        )
        secrets.chmod(0o600)
        async with egress_rig(
            network,
            state,
            names=NAMES,
            egress_allow="*.example",
            egress_secrets=str(secrets),
            disk_bytes=96 * 1024 * 1024,
            disk_reserve_bytes=0,
        ) as made:
            if made.engine.egress.summary != "allow-list":
                pytest.skip("no backend of this machine has a way out")
            await made.servers.traps(network.near, NEAR, (80, 443))
            yield made
            assert made.servers.trapped == []


@pytest.fixture
def workdir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest_asyncio.fixture(loop_scope="package")
async def web(rig: EgressRig) -> AsyncIterator[EgressRig]:
    """The rig with no server and session of another test."""
    rig.servers.seen.clear()
    before = rig.servers.mark()
    yield rig
    rig.servers.end_since(before)
    await rig.end_sessions()
