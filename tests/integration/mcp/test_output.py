"""What a result costs a model, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp_types import CallToolResult

from codegen_mcp.coordinator.mcp.config import IMAGE_BYTES, MAX_READ_BYTES, RESULT_BYTES

from .conftest import NEW, Agent, Connect, facts, text

LINES = 10 * 1024 * 1024 // 16
PRINT = f"import sys\nsys.stdout.write(''.join(f'{{n:015d}}\\n' for n in range({LINES})))"
EXPECTED = "".join(f"{n:015d}\n" for n in range(LINES)).encode()
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


@pytest.fixture
async def agent(connect: Connect) -> AsyncIterator[Agent]:
    """A connected client, kept by a task of its own: what opens it must close it."""
    opened: asyncio.Future[Agent] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def keep() -> None:
        async with connect("http", NEW) as agent:
            opened.set_result(agent)
            await over.wait()
            if agent.session_id:
                await agent.call("session_destroy")

    keeper = asyncio.create_task(keep())
    await asyncio.wait([opened, keeper], return_when=asyncio.FIRST_COMPLETED)
    yield opened.result()
    over.set()
    await keeper


def cost(result: CallToolResult) -> int:
    """Bytes of a result without its images, as it is sent."""
    sent = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    sent["content"] = [block for block in sent["content"] if block["type"] != "image"]
    return len(json.dumps(sent, ensure_ascii=False).encode())


async def whole(agent: Agent, task_id: str, stream: str = "stdout") -> bytes:
    """Read a stream to its end."""
    data, at = bytearray(), 0
    while True:
        part = facts(
            await agent.call(
                "output_read",
                task_id=task_id,
                stream=stream,
                offset=at,
                length=MAX_READ_BYTES,
                encoding="base64",
            )
        )
        data += base64.b64decode(part["contents"])
        at = part["next_offset"]
        if part["end"]:
            return bytes(data)


async def test_ten_megabytes_cost_their_budget_and_can_all_be_read(agent: Agent) -> None:
    result = await agent.call("run_python", code=PRINT)
    ran = facts(result)
    assert cost(result) <= RESULT_BYTES
    assert cost(result) > RESULT_BYTES * 0.8
    assert ran["stdout_bytes"] == len(EXPECTED)
    head, _, tail = ran["stdout"].partition("[")
    marker, _, tail = tail.partition("]\n")
    assert EXPECTED.startswith(head.encode())
    assert EXPECTED.endswith(tail.encode())
    assert len(head) + len(tail) + ran["stdout_omitted_bytes"] == len(EXPECTED)
    assert f"{ran['stdout_omitted_bytes']:,} of {len(EXPECTED):,} bytes of stdout" in marker
    assert f"offset={len(head)}" in marker
    assert await whole(agent, ran["task_id"]) == EXPECTED


async def test_many_artifacts_and_long_output_fit_into_one_budget(agent: Agent) -> None:
    name = "a-rather-long-name-of-an-artifact-" * 6
    code = (
        f"import os; os.mkdir('artifacts')\nfor n in range(45): open(f'artifacts/{name}{{n}}', 'w')"
    )
    result = await agent.call("run_python", code=f"{code}\nprint('x' * 1_000_000)\n1 / 0")
    ran = facts(result)
    assert cost(result) <= RESULT_BYTES
    assert len(ran["artifacts"]) + ran["artifacts_omitted"] == 45
    assert len(ran["artifacts"]) > 5
    assert "ZeroDivisionError" in ran["stderr"]
    assert f"and {ran['artifacts_omitted']} more artifacts: artifact_list(" in text(result)


async def test_output_that_is_no_text_comes_back_to_the_byte(agent: Agent) -> None:
    code = "import random, sys; sys.stdout.buffer.write(random.Random(7).randbytes(300_000))"
    result = await agent.call("run_python", code=code)
    assert cost(result) <= RESULT_BYTES
    assert await whole(agent, facts(result)["task_id"]) == random.Random(7).randbytes(300_000)


async def test_ranges_of_text_end_at_characters_and_join_to_the_whole(agent: Agent) -> None:
    expected = "aä€😀" * 50
    ran = await agent.run(f"print({expected!r})")
    joined, at = "", 0
    while True:
        call = await agent.call("output_read", task_id=ran["task_id"], offset=at, length=7)
        part = facts(call)
        assert part["replaced_bytes"] == 0
        joined += part["contents"]
        at = part["next_offset"]
        if part["end"]:
            break
    assert joined == expected + "\n"


async def test_an_image_is_shown_as_one_and_its_base64_is_in_no_text(agent: Agent) -> None:
    code = (
        f"import os; os.mkdir('artifacts'); open('artifacts/p.png', 'wb').write({PNG!r})\n"
        f"open('p.png', 'wb').write({PNG!r})"
    )
    ran = await agent.call("run_python", code=code)
    (artifact,) = facts(ran)["artifacts"]
    read = await agent.call("fs_read", path="p.png")
    got = await agent.call("artifact_get", artifact_id=artifact["artifact_id"])
    encoded = base64.b64encode(PNG).decode()
    for result in (ran, read, got):
        (image,) = [block for block in result.content if block.type == "image"]
        assert (image.data, image.mime_type) == (encoded, "image/png")
        assert encoded[:40] not in text(result)
        assert encoded[:40] not in json.dumps(result.structured_content)


async def test_an_image_beyond_the_budget_and_what_is_no_text_are_links(agent: Agent) -> None:
    code = (
        "import os; os.mkdir('artifacts')\n"
        f"big = {PNG!r} + b'x' * {IMAGE_BYTES}\n"
        "open('artifacts/big.png', 'wb').write(big); open('big.png', 'wb').write(big)\n"
        "open('some.bin', 'wb').write(b'\\xff\\x00' * 100)"
    )
    ran = await agent.call("run_python", code=code)
    for result in (
        ran,
        await agent.call("fs_read", path="big.png"),
        await agent.call("fs_read", path="some.bin"),
    ):
        kinds = [block.type for block in result.content]
        assert kinds == ["text", "resource_link"]
        assert cost(result) < 4000
    link = next(block for block in ran.content if block.type == "resource_link")
    assert link.size == len(PNG) + IMAGE_BYTES
    blob = (await agent.client.read_resource(link.uri)).contents[0]
    assert len(base64.b64decode(blob.blob)) == link.size  # type: ignore[union-attr]


async def test_a_text_file_is_read_in_parts_that_join_to_the_whole(agent: Agent) -> None:
    expected = "".join(f"line {n} äöü\n" for n in range(9000))
    await agent.call("fs_write", path="long.txt", contents=expected)
    joined, at, calls = "", 0, 0
    while True:
        result = await agent.call("fs_read", path="long.txt", offset=at)
        assert cost(result) <= RESULT_BYTES
        part = facts(result)
        joined += part["contents"]
        at, calls = part["next_offset"], calls + 1
        if not at:
            break
    assert joined == expected
    assert calls > 5


async def test_a_long_listing_is_paged_within_the_budget(agent: Agent) -> None:
    await agent.run("for n in range(3000): open(f'file-{n:04d}-with-a-long-name', 'w')")
    names: list[str] = []
    at: Any = 0
    while True:
        result = await agent.call("fs_list", offset=at)
        assert cost(result) <= RESULT_BYTES
        page = facts(result)
        assert page["total_count"] == 3000
        names += [one["path"] for one in page["files"]]
        if not (at := page["next_offset"]):
            break
    assert names == [f"file-{n:04d}-with-a-long-name" for n in range(3000)]


async def test_a_program_that_fails_is_a_good_call_that_says_how(agent: Agent) -> None:
    result = await agent.call("run_python", code="import json\njson.loads('{')")
    ran = facts(result)
    assert (ran["exit_code"], ran["ended_by"]) == (1, "exit")
    assert "json.loads('{')" in ran["stderr"]
    assert "raw_decode" not in ran["stderr"]
    assert "json/decoder.py" in ran["stderr"]
    assert "JSONDecodeError: Expecting property name" in ran["stderr"]
    assert b"raw_decode" in await whole(agent, ran["task_id"], "stderr")

    result = await agent.call("run_python", code="print('before'); x = bytearray(900 << 20)")
    ran = facts(result)
    assert (ran["ended_by"], ran["stdout"]) == ("memory", "before\n")
    assert "512 MiB" in ran["remedy"]
    assert ran["remedy"] in text(result)

    result = await agent.call(
        "run_python", code="import time\nwhile True: time.sleep(1)", timeout_seconds=1
    )
    assert facts(result)["ended_by"] == "timeout"


async def test_only_a_tool_that_could_not_work_is_an_error_and_says_what_to_do(
    agent: Agent,
) -> None:
    await agent.run("1")
    for tool, arguments, words in (
        ("fs_read", {"path": "no.txt"}, "fs_list"),
        ("fs_read", {"path": "../../etc/passwd"}, "workspace"),
        ("run_python", {}, "code"),
        ("run_python", {"code": "1", "colour": "red"}, "colour"),
        ("task_status", {"task_id": "nothing"}, "task_id"),
        ("artifact_get", {"artifact_id": "art_" + 32 * "0"}, "artifact_list"),
    ):
        result = await agent.call(tool, **arguments)
        assert result.is_error, (tool, arguments)
        assert words in text(result), text(result)
        assert len(text(result)) < 1500
