"""How a worker joins by its settings: addresses, tokens, TLS, and who may call it afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.bootstrap.lifecycle import advertised, joining
from codegen_mcp.bootstrap.serve import start_up_lines
from codegen_mcp.coordinator.auth.config import ClientTlsConfig
from codegen_mcp.coordinator.auth.tls import channel_credentials
from codegen_mcp.coordinator.auth.token_entry import TokenKind
from codegen_mcp.coordinator.dialled_link import DialledLink
from codegen_mcp.coordinator.stream_link import StreamLink
from codegen_mcp.settings import Settings
from codegen_mcp.testing.access_rig import Authority, new_entry, write_tokens
from codegen_mcp.testing.joined import joined_worker, open_hub
from codegen_mcp.testing.wire import RichError, Wire
from codegen_mcp.testing.worker import in_process_worker

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(90)]


def settings(**fields) -> Settings:
    return Settings(**{"host": "127.0.0.1", "coordinator_addr": "127.0.0.1:50050", **fields})


@pytest.mark.parametrize(
    ("host", "coordinator", "announced", "expected"),
    [
        ("127.0.0.1", "127.0.0.1:50050", "auto", "127.0.0.1:7"),
        ("127.0.0.1", "localhost:50050", "auto", "127.0.0.1:7"),
        ("::1", "[::1]:50050", "auto", "[::1]:7"),
        ("127.0.0.1", "10.1.2.3:50050", "auto", ""),
        ("10.9.8.7", "10.1.2.3:50050", "auto", "10.9.8.7:7"),
        ("0.0.0.0", "127.0.0.1:50050", "auto", "127.0.0.1:7"),
        ("unix:/run/w", "unix:/run/c", "auto", "unix:/run/w"),
        ("unix:/run/w", "10.1.2.3:50050", "auto", ""),
        ("127.0.0.1", "127.0.0.1:50050", "off", ""),
        ("0.0.0.0", "10.1.2.3:50050", "w.example:99", "w.example:99"),
    ],
)
async def test_a_worker_announces_the_address_that_its_coordinator_can_reach(
    host, coordinator, announced, expected
):
    asked = settings(host=host, coordinator_addr=coordinator, advertise_addr=announced)
    assert advertised(asked, 7) == expected


@pytest.mark.parametrize("wrong", ["50050", "host", "host:", ":50050", "host:0", "host:99999"])
async def test_an_address_that_is_none_is_refused(wrong):
    for name in ("coordinator_addr", "advertise_addr"):
        with pytest.raises(ValueError, match="host:50050"):
            settings(**{name: wrong})


async def test_a_worker_beyond_this_machine_takes_its_coordinator_alone_from_the_start(tmp_path):
    tokens = str(tmp_path / "tokens")
    assert joining(settings()).required is False
    assert joining(settings(host="10.0.0.1")).asks
    assert joining(settings(auth_tokens=tokens)).asks
    assert not joining(settings(host="10.0.0.1", insecure_no_auth=True)).asks
    assert not joining(settings(coordinator_addr="", host="10.0.0.1")).asks
    assert joining(settings()).token != joining(settings()).token


async def test_a_worker_says_at_the_start_who_may_call_and_what_can_be_read_on_the_way():
    async with in_process_worker() as worker:

        def lines(**fields) -> str:
            return "\n".join(start_up_lines(settings(**fields), worker.engine))

        assert "once this worker has joined it, only the coordinator" in lines()
        assert "access: only the coordinator" in lines(host="10.0.0.1")
        for near in ("127.0.0.1:50050", "[::1]:50050", "unix:/run/c"):
            assert "WARNING without TLS" not in lines(coordinator_addr=near)
        far = "10.1.2.3:50050"
        assert f"on the way to {far}" in lines(coordinator_addr=far)
        assert "WARNING without TLS" not in lines(coordinator_addr=far, tls_ca="/etc/ca.pem")


async def test_the_worker_token_is_not_shown(tmp_path):
    secret = "cgm_something-secret"
    asked = settings(coordinator_token=secret)
    assert asked.worker_auth_token == secret
    assert secret not in repr(asked)
    assert secret not in str(asked.shown())
    path = tmp_path / "token"
    path.write_text(f"{secret}\n")
    assert settings(coordinator_token_file=str(path)).worker_auth_token == secret


@pytest.mark.parametrize("dialled", [True, False])
async def test_a_worker_joins_with_its_token_however_it_is_reached(tmp_path, dialled):
    token, worker = new_entry("memory-*", TokenKind.WORKER)
    bearer, caller = new_entry("alice")
    write_tokens(tmp_path / "tokens", worker, caller)
    headers = (("authorization", f"Bearer {bearer}"),)
    async with (
        open_hub(auth_tokens=str(tmp_path / "tokens")) as hub,
        joined_worker(hub.address, dialled=dialled, lifecycle={"auth_token": token}) as joined,
    ):
        linked = await hub.linked()
        assert isinstance(linked.link, DialledLink if dialled else StreamLink)
        made = await hub.wire.sessions.CreateSession(pb.CreateSessionRequest(), metadata=headers)
        assert made.worker_id == "memory-worker"
        with pytest.raises(aio.AioRpcError) as caught:  # not past the coordinator
            await joined.worker.wire.session()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert RichError(caught.value).info.reason == "COORDINATOR_ONLY"


@pytest.mark.parametrize("wrong", ["", "cgm_no-such-token"])
async def test_a_worker_without_the_right_token_stays_outside_and_asks_again(tmp_path, wrong):
    token, worker = new_entry("memory-worker", TokenKind.WORKER)
    path = tmp_path / "tokens"
    write_tokens(path, new_entry("other", TokenKind.WORKER)[1])
    async with open_hub(auth_tokens=str(path)) as hub:
        async with joined_worker(hub.address, lifecycle={"auth_token": wrong}) as joined:
            await asyncio.sleep(0.3)
            assert not joined.agent.joined.is_set()
            assert hub.coordinator.routing.workers.named("memory-worker") is None
        async with joined_worker(hub.address, lifecycle={"auth_token": token}) as joined:
            write_tokens(path, worker)  # the operator adds it: no restart is needed
            await hub.linked(within_s=20)


@pytest.mark.parametrize("announced", ["auto", "off"])
async def test_worker_and_coordinator_know_each_other_by_their_certificates(tmp_path, announced):
    tmp_path.chmod(0o755)
    authority = Authority(tmp_path)
    cert, key = authority.server()
    own_cert, own_key = authority.issue("client", "a client of ours")
    tls = {
        "tls_cert": str(cert),
        "tls_key": str(key),
        "tls_client_ca": str(authority.ca),
        "tls_ca": str(authority.ca),
        "tls_client_cert": str(own_cert),
        "tls_client_key": str(own_key),
    }
    async with (
        open_hub(**tls) as hub,
        in_process_worker(
            coordinator_addr=hub.address, advertise_addr=announced, worker_id="far", **tls
        ),
    ):
        linked = await hub.linked("far", within_s=20)
        assert isinstance(linked.link, DialledLink if announced == "auto" else StreamLink)
        credentials = channel_credentials(
            ClientTlsConfig(ca=authority.ca, cert=own_cert, key=own_key)
        )
        async with aio.secure_channel(hub.address, credentials) as channel:
            wire = Wire(channel)
            session_id = await wire.session()
            tool = tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message="over TLS"))
            last = (await wire.run(session_id, tool))[-1]
            assert last.result.typed_response.echo.message == "over TLS"
        other = Authority(tmp_path, "other-ca")
        async with joined_worker(
            hub.address,
            "stranger",
            lifecycle={"credentials": channel_credentials(ClientTlsConfig(ca=other.ca))},
        ) as stranger:
            await asyncio.sleep(0.3)
            assert not stranger.agent.joined.is_set()


async def test_two_workers_over_one_store_say_that_it_is_one(tmp_path):
    tmp_path.chmod(0o755)
    shared = {"checkpoint_dir": str(tmp_path / "store")}
    async with (
        open_hub() as hub,
        in_process_worker(coordinator_addr=hub.address, worker_id="a", **shared),
        in_process_worker(coordinator_addr=hub.address, worker_id="b", **shared),
    ):
        a, b = [(await hub.linked(name)).registration.store_id for name in "ab"]
        assert a == b
        assert a.startswith("store_")
        assert (Path(tmp_path) / "store").exists()
