"""Strangers on one worker: the ladder they get, what it refuses, and a real worker that says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.core.errors import InvalidRequest, SandboxUnavailable
from codegen_mcp.sandbox import container_engine, gvisor, registry
from codegen_mcp.sandbox.base import IsolationLevel
from codegen_mcp.sandbox.registry import Tenancy
from codegen_mcp.testing.sandbox_ground import Ground, prepared_ground
from codegen_mcp.testing.wire import dial
from codegen_mcp.testing.worker import worker_process

HOSTILE = Tenancy.HOSTILE


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with prepared_ground() as prepared:
        yield prepared


@pytest.fixture
def nothing_stronger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with neither runsc nor a container engine."""
    monkeypatch.delenv("RUNSC_PATH", raising=False)
    monkeypatch.setattr(gvisor, "SEARCHED", "/nonexistent")
    monkeypatch.setattr(container_engine, "SEARCHED", "/nonexistent")
    monkeypatch.setattr(container_engine, "_sockets", list)


def test_strangers_begin_at_the_strongest_backend_and_friends_at_the_fastest_safe_one() -> None:
    bubblewrap = IsolationLevel.BUBBLEWRAP
    everything = ["gvisor", "container", "bubblewrap", "process-hardened"]
    assert registry.ladder(bubblewrap, HOSTILE) == everything
    assert registry.ladder(bubblewrap, Tenancy.TRUSTED) == everything[2:]


@pytest.mark.usefixtures("nothing_stronger")
async def test_without_anything_stronger_strangers_get_bubblewrap_and_why_is_told(
    ground: Ground,
) -> None:
    with ground.config() as config:
        choice = await registry.choose(config, tenancy=HOSTILE)
        with pytest.raises(SandboxUnavailable, match="runsc is not installed"):
            await registry.choose(
                config, name="gvisor", required=IsolationLevel.GVISOR, tenancy=HOSTILE
            )
    assert choice.probe.level is IsolationLevel.BUBBLEWRAP
    assert [probe.name for probe in choice.rejected] == ["gvisor", "container"]
    assert "runsc is not installed" in choice.rejected[0].reason
    assert "no container engine" in choice.rejected[1].reason


@pytest.mark.parametrize("name", [registry.AUTO, "process-hardened"])
@pytest.mark.parametrize("level", ["process-hardened", "process-bare"])
async def test_strangers_never_share_the_hosts_names_whatever_is_asked(
    ground: Ground, name: str, level: str
) -> None:
    required = registry.parse_level(level)
    with ground.config() as config, pytest.raises(InvalidRequest, match="--tenancy trusted"):
        await registry.choose(config, name=name, required=required, tenancy=HOSTILE)


async def test_a_named_backend_that_is_too_weak_for_strangers_is_refused(ground: Ground) -> None:
    with ground.config() as config, pytest.raises(SandboxUnavailable, match="is weaker"):
        await registry.choose(config, name="process-hardened", tenancy=HOSTILE)


async def test_a_worker_for_strangers_serves_them_from_the_strongest_backend() -> None:
    async with worker_process(tenancy="hostile", max_sessions=4, pool_size=0) as worker:
        said = "\n".join(worker.output)
        if "backend=bubblewrap" in said:
            assert "no gvisor: " in said
            assert "no container: " in said
            pytest.skip(said)
        level = "gvisor" if "backend=gvisor" in said else "container"
        assert f"backend={level}" in said
        async with dial(worker.address) as wire:
            created = await wire.sessions.CreateSession(sessions_pb.CreateSessionRequest())
            tool = tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code="print(6 * 7)"))
            ran = await wire.run(created.session_id, tool)
    assert created.isolation["sandbox"] == level
    assert ran[-1].result.typed_response.run_python.stdout == "42\n"
