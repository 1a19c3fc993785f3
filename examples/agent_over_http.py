"""An agent's first minutes over HTTP: one session by its handle, live progress, a chart to look at.

Needs `codegen-mcp serve` in another terminal and the official client (`pip install mcp`).
MCP_URL and MCP_TOKEN name another server and a token for it.
"""

from __future__ import annotations

import asyncio
import os

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

URL = os.environ.get("MCP_URL", "http://127.0.0.1:8080/mcp")
TOKEN = os.environ.get("MCP_TOKEN", "")

SQUARES = """
import time
for n in range(1, 6):
    print(f"{n} squared is {n * n}", flush=True)
    time.sleep(0.4)
"""
DOT = """
import os, struct, zlib
os.makedirs("artifacts", exist_ok=True)
def part(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = b"".join(b"\\0" + bytes((n * 4, 0, 255 - n * 4)) * 64 for n in range(64))
png = part(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
png += part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
open("artifacts/blend.png", "wb").write(b"\\x89PNG\\r\\n\\x1a\\n" + png)
"""


async def show(done: float, total: float | None, message: str | None) -> None:
    for line in (message or "").splitlines():
        print(f"  {done:4.1f} s  {line}")


async def main() -> None:
    headers = {"authorization": f"Bearer {TOKEN}"} if TOKEN else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=300) as http,
        Client(streamable_http_client(URL, http_client=http)) as client,
    ):
        made = await client.call_tool("session_create", {})
        assert made.structured_content is not None
        session = {"session_id": made.structured_content["session_id"]}

        print("code that takes its time:")
        ran = await client.call_tool(
            "run_python", {"code": SQUARES, **session}, progress_callback=show
        )
        assert ran.structured_content is not None
        print("exit code", ran.structured_content["exit_code"])

        drawn = await client.call_tool("run_python", {"code": DOT, **session})
        for block in drawn.content:
            if block.type == "image":
                print("an image to look at:", block.mime_type)

        failed = await client.call_tool("run_python", {"code": "open('no.txt')", **session})
        assert failed.structured_content is not None
        print("a program that fails:", failed.structured_content["stderr"].splitlines()[-1])

        await client.call_tool("session_destroy", session)


if __name__ == "__main__":
    asyncio.run(main())
