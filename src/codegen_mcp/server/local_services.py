"""The worker's own services without a server: for calls that come over a TaskStream.

They pass the same admission, gate and error table as calls over the network, and their handlers are
the same; only the way in and out is another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc import aio

from codegen_mcp.core.errors import NotImplementedYet
from codegen_mcp.server.caller_gate import AUTHORIZATION, EPOCH
from codegen_mcp.server.interceptors import REQUEST_ID, EdgeInterceptor

Write = Callable[[bytes], Awaitable[None]]
DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class LocalMethod:
    """One method of one service."""

    request: type[Message]
    client_streaming: bool
    server_streaming: bool
    behaviour: Callable[[Any, Any], Awaitable[Any]]

    @property
    def unary(self) -> bool:
        """Whether it has one request and one answer."""
        return not (self.client_streaming or self.server_streaming)


class Refused(Exception):
    """A call was answered with a status other than OK."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class LocalContext:
    """What handlers use of ``aio.ServicerContext``."""

    def __init__(
        self, metadata: tuple[tuple[str, str], ...], write: Write, admitted: Callable[[], None]
    ) -> None:
        """Make it.

        Args:
            metadata: Of the call.
            write: Takes the messages of an answer but the last, serialized.
            admitted: Called when the handler says that it has taken the call.
        """
        self._metadata = metadata
        self._admitted = admitted
        self.write = write
        self.status: status_pb2.Status | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of the call."""
        return self._metadata

    def set_trailing_metadata(self, trailing_metadata: object) -> None:
        """Nobody reads it."""

    async def send_initial_metadata(self, initial_metadata: object) -> None:
        """The call was taken."""
        self._admitted()

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        """End the call with a status."""
        rich = dict(trailing_metadata).get(DETAILS, b"")
        assert isinstance(rich, bytes)
        self.status = status_pb2.Status.FromString(rich)
        self.status.code, self.status.message = code.value[0], details
        raise aio.AbortError


class LocalServices:
    """Every method by its short name, ``SessionManagement/CreateSession``."""

    def __init__(
        self, servicers: Mapping[ServiceDescriptor, object], edge: EdgeInterceptor, token: str = ""
    ) -> None:
        """Wire it up.

        Args:
            servicers: By the description of what they serve.
            edge: What calls pass.
            token: What the edge's gate wants to see.
        """
        self._token = ((AUTHORIZATION, f"Bearer {token}"),) if token else ()
        self._methods = {
            f"{service.name}/{method.name}": LocalMethod(
                request=GetMessageClass(method.input_type),
                client_streaming=method.client_streaming,
                server_streaming=method.server_streaming,
                behaviour=edge.behaviour(
                    f"/{service.full_name}/{method.name}", getattr(servicer, method.name)
                ),
            )
            for service, servicer in servicers.items()
            for method in service.methods
        }

    def find(self, name: str) -> LocalMethod:
        """Return a method.

        Raises:
            NotImplementedYet: There is none of this name.
        """
        method = self._methods.get(name)
        if method is None:
            raise NotImplementedYet(f"this worker has no method {name[:120]!r}")
        return method

    async def call(
        self,
        method: LocalMethod,
        request: object,
        *,
        write: Write,
        epoch: int = 0,
        request_id: str = "",
        admitted: Callable[[], None] = lambda: None,
    ) -> Message:
        """Do a call; the (last) message of its answer.

        Args:
            method: Of ``find``.
            request: A message, or an iterator of them.
            write: Takes the messages before the last, serialized.
            epoch: Under which its session is taken to be held; 0 is any.
            request_id: For the log; empty makes one.
            admitted: Called when a task with a sequence was taken.

        Raises:
            Refused: It was answered with a status.
        """
        metadata = (
            *self._token,
            *(((EPOCH, str(epoch)),) if epoch else ()),
            *(((REQUEST_ID, request_id),) if request_id else ()),
        )
        context = LocalContext(metadata, write, admitted)
        try:
            answer: Message = await method.behaviour(request, context)
        except aio.AbortError:
            assert context.status is not None
            raise Refused(context.status) from None
        return answer
