"""A process that keeps an audit log until it is killed: ``python -m ... DIRECTORY FILE_BYTES``.

It prints the id of each call whose outcome is recorded, as soon as it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from codegen_mcp.telemetry.audit import AuditLog
from codegen_mcp.telemetry.audit_config import AuditConfig
from codegen_mcp.telemetry.logs import configure_logging

AT_ONCE = 8


async def keep(directory: Path, file_bytes: int) -> None:
    """Record calls without end, several at once."""
    async with AuditLog(AuditConfig(directory=directory, file_bytes=file_bytes)) as log:

        async def caller(name: str) -> None:
            number = 0
            while True:
                call = f"{name}-{number}"
                await log.record({"kind": "call", "call": call, "padding": "x" * (number % 700)})
                await log.record({"kind": "end", "call": call}, keep=True)
                os.write(1, f"{call}\n".encode())
                number += 1

        async with asyncio.TaskGroup() as group:
            for one in range(AT_ONCE):
                group.create_task(caller(f"{os.getpid()}-{one}"))


if __name__ == "__main__":
    configure_logging("error")
    asyncio.run(keep(Path(sys.argv[1]), int(sys.argv[2])))
