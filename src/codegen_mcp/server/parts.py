"""The messages of an answer that has several."""

from __future__ import annotations

from google.protobuf.message import Message
from grpc import aio

from codegen_mcp.core.errors import Cancelled
from codegen_mcp.server.interceptors import Context


async def write_part(context: Context, message: Message) -> None:
    """Write a message of a streamed answer; the last one is returned by its handler instead.

    Written as bytes: to grpc a handler that returns its last message has a single answer, and it
    keeps the serializer of a single answer to itself.

    Raises:
        Cancelled: The caller has left while this waited for him to read.
    """
    try:
        await context.write(message.SerializeToString())
    except aio.InternalError:
        raise Cancelled("the caller has left") from None
