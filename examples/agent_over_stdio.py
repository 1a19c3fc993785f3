"""A sandbox for an agent in one line: the client starts `codegen-mcp mcp` and talks to it.

Needs the official client (`pip install mcp`) and nothing that runs before.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

from mcp import Client
from mcp.client.stdio import StdioServerParameters

BESIDE = Path(sys.executable).parent / "codegen-mcp"
SERVER = StdioServerParameters(
    command=str(BESIDE) if BESIDE.exists() else shutil.which("codegen-mcp") or "codegen-mcp",
    args=["mcp"],
    env=dict(os.environ),
)


async def main() -> None:
    async with Client(SERVER) as client:
        tools = await client.list_tools()
        print(len(tools.tools), "tools, among them", ", ".join(t.name for t in tools.tools[:3]))
        await client.call_tool("fs_write", {"path": "numbers.txt", "contents": "3\n4\n5\n"})
        code = "print('total', sum(int(line) for line in open('numbers.txt')))"
        result = await client.call_tool("run_python", {"code": code})
        assert result.structured_content is not None
        print(result.structured_content["stdout"], end="")

        saved = await client.call_tool("session_checkpoint", {"name": "before"})
        assert saved.structured_content is not None
        await client.call_tool("fs_delete", {"path": "numbers.txt"})
        back = {"checkpoint_id": saved.structured_content["checkpoint_id"]}
        await client.call_tool("session_restore", back)
        listed = await client.call_tool("fs_list", {})
        assert listed.structured_content is not None
        print("after the restore:", *(one["path"] for one in listed.structured_content["files"]))


if __name__ == "__main__":
    asyncio.run(main())
