"""The law of ``sandbox/base.py`` about the entrance to the way out."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.testing.sandbox_rig import Rig

PORT = 3128
CONNECT = f"""
import socket
s = socket.socket()
print(s.connect_ex(("127.0.0.1", {PORT})))
if s.fileno() >= 0:
    try: print(s.recv(5))
    except OSError: print("nothing")
"""


async def an_entrance_answers_to_this_sandbox_and_only_while_somebody_listens(rig: Rig) -> None:
    """A backend that cannot have one refuses to boot with it."""
    place = await rig.place()
    unasked = place.sandbox.entrance
    assert unasked is None
    await place.sandbox.aclose()
    place.spec = replace(place.spec, egress_port=PORT)
    if not getattr(rig.backend, "carries_egress", False):
        said = ""
        try:
            await rig.backend.create(place.spec)
        except SandboxUnavailable as error:
            said = error.message
        assert "no way out" in said
        return
    await place.reboot()
    neighbour = await rig.place()
    entrance = place.sandbox.entrance
    assert entrance is not None
    assert entrance.getsockname() == ("127.0.0.1", PORT)
    refused = b"111\nnothing\n"
    assert (await rig.run(place, CONNECT)).stdout == refused

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, sock=entrance.dup())
    try:
        assert (await rig.run(place, CONNECT)).stdout == b"0\nb'hello'\n"
        assert (await rig.run(neighbour, CONNECT)).stdout == refused
    finally:
        entrance.shutdown(0)
        server.close()
    assert (await rig.run(place, CONNECT)).stdout == refused
    await place.sandbox.aclose()
    assert entrance.fileno() < 0
