"""The messages of an answer that has several."""

from __future__ import annotations

from google.protobuf.message import Message

from codegen_mcp.server.interceptors import Context


async def write_part(context: Context, message: Message) -> None:
    """Write a message of a streamed answer; the last one is returned by its handler instead.

    Written as bytes: to grpc a handler that returns its last message has a single answer, and it
    keeps the serializer of a single answer to itself.
    """
    await context.write(message.SerializeToString())
