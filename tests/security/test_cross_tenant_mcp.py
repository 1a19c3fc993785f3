from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp import Client
from mcp.shared.exceptions import MCPError

from codegen_mcp.coordinator.mcp.catalogue import make_catalogue
from codegen_mcp.coordinator.mcp.failures import META
from codegen_mcp.coordinator.mcp.resources import TEMPLATES
from codegen_mcp.testing.tenants import SECRET, Asked, Ids, Tenants, compared, shared_tenants

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenants]:
    """One service for all tests here that leave everything as it is."""
    async with shared_tenants(tmp_path_factory.mktemp("tenants")) as opened:
        yield opened


OLD, NEW = "legacy", "2026-07-28"
Arguments = Callable[[Ids], dict[str, Any]]

NOT_FOUND = "NOT_FOUND"
OWN = "an answer about the caller's own alone"

TOOLS: dict[str, tuple[str, Arguments]] = {
    "run_python": (NOT_FOUND, lambda i: {"session_id": i.session, "code": "1"}),
    "run_shell": (NOT_FOUND, lambda i: {"session_id": i.session, "command": "cat secret.txt"}),
    "pkg_install": (NOT_FOUND, lambda i: {"session_id": i.session, "packages": ["x"]}),
    "fs_read": (NOT_FOUND, lambda i: {"session_id": i.session, "path": "secret.txt"}),
    "fs_write": (
        NOT_FOUND,
        lambda i: {"session_id": i.session, "path": "secret.txt", "contents": "x"},
    ),
    "fs_list": (NOT_FOUND, lambda i: {"session_id": i.session}),
    "fs_stat": (NOT_FOUND, lambda i: {"session_id": i.session, "path": "secret.txt"}),
    "fs_move": (
        NOT_FOUND,
        lambda i: {"session_id": i.session, "source": "secret.txt", "target": "x"},
    ),
    "fs_delete": (NOT_FOUND, lambda i: {"session_id": i.session, "path": "secret.txt"}),
    "artifact_get": (NOT_FOUND, lambda i: {"artifact_id": i.artifact}),
    "artifact_list": (OWN, lambda i: {"session_id": i.session}),
    "output_read": (NOT_FOUND, lambda i: {"session_id": i.session, "task_id": i.task}),
    "task_status": (NOT_FOUND, lambda i: {"session_id": i.session, "task_id": i.task}),
    "task_result": (NOT_FOUND, lambda i: {"session_id": i.session, "task_id": i.task}),
    "task_cancel": (NOT_FOUND, lambda i: {"session_id": i.session, "task_id": i.task}),
    "session_create": (OWN, lambda i: {}),
    "session_list": (OWN, lambda i: {}),
    "session_status": (NOT_FOUND, lambda i: {"session_id": i.session}),
    "session_checkpoint": (NOT_FOUND, lambda i: {"session_id": i.session}),
    "session_restore": (NOT_FOUND, lambda i: {"checkpoint_id": i.checkpoint}),
    "session_fork": (NOT_FOUND, lambda i: {"session_id": i.session}),
    "session_destroy": (NOT_FOUND, lambda i: {"session_id": i.session}),
    "echo": (NOT_FOUND, lambda i: {"session_id": i.session, "message": "x"}),
}
"""Every tool with what a principal gets who names what is another's."""

OTHER_WAYS: list[tuple[str, str, Arguments]] = [
    ("session_restore", NOT_FOUND, lambda i: {"checkpoint_id": i.checkpoint, "new_session": True}),
    ("run_python", NOT_FOUND, lambda i: {"session_id": i.session, "code": "1", "background": True}),
    *(
        (tool, expected, make)
        for tool in ("task_status", "task_result", "task_cancel", "output_read")
        for expected, make in (
            # The handles of this face name their session; others need it beside them.
            (NOT_FOUND, lambda i: {"task_id": f"{i.session}.0123456789ab"}),
            ("INVALID_ARGUMENT", lambda i: {"task_id": i.task}),
        )
    ),
    ("artifact_list", OWN, lambda i: {}),
    ("artifact_list", OWN, lambda i: {"task_id": i.task}),
]

RESOURCES: dict[str, list[Callable[[Ids], str]]] = {
    "workspace://{session_id}/{+path}": [
        lambda i: f"workspace://{i.session}/secret.txt",
        lambda i: f"workspace://{i.session}/",
        lambda i: f"workspace://{i.session}/nothing-here",
    ],
    "artifact://{artifact_id}": [lambda i: f"artifact://{i.artifact}"],
}
"""Every kind of resource, with addresses of what is another's."""


async def test_every_tool_has_a_row() -> None:
    assert set(TOOLS) == {tool.spec.mcp_name for tool in make_catalogue().tools}


async def test_every_id_that_a_tool_takes_is_named() -> None:
    ids = Ids(session="s", task="t", checkpoint="c", artifact="a")
    for tool in make_catalogue().tools:
        wanted = {name for name in tool.input_schema["properties"] if name.endswith("_id")}
        rows = [make(ids) for name, _, make in OTHER_WAYS if name == tool.spec.mcp_name]
        named = set().union(TOOLS[tool.spec.mcp_name][1](ids), *rows)
        assert wanted <= named, tool.spec.name


async def test_every_kind_of_resource_has_a_row() -> None:
    assert set(RESOURCES) == {one.uri_template for one in TEMPLATES.resource_templates}


async def call(client: Client, tool: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """Call; returns the status, and all that was said or answered."""
    result = await client.call_tool(tool, arguments)
    said = " ".join(block.model_dump_json() for block in result.content)
    said += json.dumps(result.structured_content, sort_keys=True)
    if result.is_error:
        facts = (result.meta or {}).get(META, {})
        return facts.get("status", "?"), said + json.dumps(facts, sort_keys=True)
    return "OK", said


@pytest.mark.parametrize("mode", [OLD, NEW])
async def test_what_is_anothers_is_like_what_never_was(tenants: Tenants, mode: str) -> None:
    wrong: list[str] = []
    rows = [(name, expected, make) for name, (expected, make) in TOOLS.items()] + OTHER_WAYS
    async with tenants.agent(tenants.bob, mode) as bob:
        hers, unknown = tenants.hers, tenants.hers.unknown()
        for tool, expected, make in rows:
            if tool == "session_create":
                continue  # it names nothing

            async def measured(ids: Ids, tool: str = tool, make: Arguments = make) -> Asked:
                tenants.work.take()
                status, said = await call(bob, tool, make(ids))
                return (status, ids.hide(said)), tenants.work.take()

            (status, said), other, unlike = await compared(measured, hers, unknown)
            if SECRET in said or (expected == OWN and "<session>" in said):
                wrong.append(f"{tool}: {status} {said}")
            if status != ("OK" if expected == OWN else expected):
                wrong.append(f"{tool}: {status} {said}, expected {expected}")
            if (status, said) != other:
                wrong.append(f"{tool}: {status} {said}, but never was: {other}")
            if unlike:
                wrong.append(f"{tool}: {unlike}")
        for addresses in RESOURCES.values():
            for make_uri in addresses:
                errors = []
                for ids in (hers, unknown):
                    with pytest.raises(MCPError) as error:
                        await bob.read_resource(make_uri(ids))
                    errors.append((error.value.code, ids.hide(str(error.value.error))))
                if errors[0] != errors[1] or NOT_FOUND not in errors[0][1]:
                    wrong.append(f"{make_uri(hers)}: {errors}")
        cursor: str | None = None
        while True:
            page = await bob.list_resources(cursor=cursor)
            wrong += [str(one.uri) for one in page.resources if hers.session in str(one.uri)]
            cursor = page.next_cursor
            if cursor is None:
                break
        async with tenants.agent(tenants.alice, mode) as alice:
            assert SECRET in (await call(alice, "fs_read", TOOLS["fs_read"][1](hers)))[1]
            assert SECRET in (await call(alice, "task_result", TOOLS["task_result"][1](hers)))[1]
            assert SECRET in (await call(alice, "artifact_get", {"artifact_id": hers.artifact}))[1]
            assert (await call(alice, "session_restore", {"checkpoint_id": hers.checkpoint}))[
                0
            ] == "OK"
    assert not wrong, "\n".join(wrong)


async def test_a_cursor_of_another_shows_nothing_of_hers(tenants: Tenants) -> None:
    async with tenants.agent(tenants.bob, NEW) as bob:
        ids = tenants.hers
        for cursor in ("s:", f"s:{ids.session[:-1]}", f"s:{ids.session}", "a:", "a:9"):
            try:
                said = str(await bob.list_resources(cursor=cursor))
            except MCPError as error:
                said = str(error.error)
            assert ids.session not in said
            assert SECRET not in said
        status, said = await call(bob, "session_list", {"page": ids.session[:-1]})
        assert ids.session not in said.replace(ids.session[:-1] + '"', "")
        assert status == "OK"


async def test_without_a_good_token_nothing_is_answered(tenants: Tenants) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient() as http:
        for shown in (
            {},
            {"authorization": "Bearer x"},
            {"authorization": f"Bearer {tenants.alice}x"},
            {"authorization": f"Bearer {tenants.alice.upper()}"},
            {"authorization": f"Basic {tenants.alice}"},
            {"authorization": tenants.alice},
            {"x-authorization": f"Bearer {tenants.alice}"},
        ):
            sent = headers | shown
            answer = await http.post(tenants.served.mcp_url, json=request, headers=sent)
            assert answer.status_code == 401
            assert "www-authenticate" in answer.headers
            assert "tools" not in answer.text


async def test_a_connection_that_was_stolen_is_nobodys(tenants: Tenants) -> None:
    """The id of a connection of the old revisions is no credential."""
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        },
    }
    run = {
        "jsonrpc": "2.0",
        "id": 2,
        "method": "tools/call",
        "params": {"name": "session_list", "arguments": {}},
    }
    accept = {"accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(headers=accept) as http:
        url = tenants.served.mcp_url
        hers = {"authorization": f"Bearer {tenants.alice}"}
        opened = await http.post(url, json=hello, headers=hers)
        assert opened.status_code == 200
        connection = {"mcp-session-id": opened.headers["mcp-session-id"]}
        for token, expected in ((tenants.bob, 404), (None, 401)):
            sent = {"authorization": f"Bearer {token}"} if token else {}
            stolen = await http.post(url, json=run, headers=sent | connection)
            assert (stolen.status_code, tenants.hers.session in stolen.text) == (expected, False)
            ended = await http.delete(url, headers=sent | connection)
            assert ended.status_code == expected
        mine = await http.post(url, json=run, headers=hers | connection)
        assert (mine.status_code, tenants.hers.session in mine.text) == (200, True)
