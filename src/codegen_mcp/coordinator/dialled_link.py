"""A link to a worker that can be dialled: its own services over one HTTP/2 connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from google.protobuf.message import Message
from grpc import ChannelConnectivity, ChannelCredentials, aio

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.methods import DOWNLOAD, PACKAGE, TASKS, UNARY, UPLOAD
from codegen_mcp.coordinator.remote_errors import LinkBroken, LinkLost, from_rpc_error
from codegen_mcp.coordinator.stream_link import StreamLink
from codegen_mcp.core.errors import NotImplementedYet
from codegen_mcp.server.convert import MAX_MESSAGE_BYTES
from codegen_mcp.server.interceptors import CALL_REQUEST_ID, REQUEST_ID

T = TypeVar("T")

EPOCH = "x-codegen-epoch"
"""Metadata of calls that name a session: under which ownership it is held."""
LAST = frozenset({"result", "error"})
"""Payloads that end a task's stream."""
CONNECT_S = 5.0
"""How long a call waits for the connection to be there before it is not sent."""
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Servers of ours take pings every ten seconds.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Retries are ours: only we know what may be sent twice.
    ("grpc.enable_retries", 0),
    # Two links to one address, of two starts of a worker, must not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)


class DialledLink:
    """Implements ``base.WorkerLink`` over grpc.aio; connects by itself, again and again."""

    def __init__(
        self,
        owner: Owner,
        address: str,
        *,
        token: str = "",
        credentials: ChannelCredentials | None = None,
        server_name: str = "",
        connect_s: float = CONNECT_S,
    ) -> None:
        """Make it; nothing is sent before the first call.

        Args:
            owner: The start of the worker that it leads to.
            address: ``host:port`` or ``unix:/path``.
            token: What the worker wants as bearer token; empty where it wants none.
            credentials: Of TLS; None is plain text.
            server_name: In the worker's certificate, where that is not the host of the address.
            connect_s: How long a call waits for the connection.
        """
        self._owner = owner
        self._connect_s = connect_s
        self._closed = False
        self._closing = asyncio.Event()
        self._ending: set[Any] = set()
        """Calls whose last message came, and whose status is about to."""
        self._stream: StreamLink | None = None
        options: list[tuple[str, str | int]] = [*OPTIONS]
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        self._channel = (
            aio.insecure_channel(address, options=options)
            if credentials is None
            else aio.secure_channel(address, credentials, options=options)
        )
        self._token = (("authorization", f"Bearer {token}"),) if token else ()
        self._unary = {
            name: self._channel.unary_unary(
                PACKAGE + name,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            for name, method in UNARY.items()
        }
        self._streams = {
            name: self._channel.unary_stream(
                PACKAGE + name,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            for name, method in TASKS.items()
        }
        self._upload = self._channel.stream_unary(
            PACKAGE + "WorkspaceFiles/Upload",
            request_serializer=UPLOAD.request.SerializeToString,
            response_deserializer=UPLOAD.response.FromString,
        )
        self._download = self._channel.unary_stream(
            PACKAGE + "WorkspaceFiles/Download",
            request_serializer=DOWNLOAD.request.SerializeToString,
            response_deserializer=DOWNLOAD.response.FromString,
        )

    @property
    def worker_id(self) -> str:
        """Whose link it is."""
        return self._owner.worker_id

    @property
    def incarnation(self) -> int:
        """Of the worker's start."""
        return self._owner.incarnation

    @property
    def connected(self) -> bool:
        """Whether a call made now would be sent at once; False says nothing is there to send on."""
        return not self._closed and self._channel.get_state() is ChannelConnectivity.READY

    async def unary(self, method: str, request: Message, *, epoch: int = 0) -> Message:
        """Do one unary call."""
        call = self._unary.get(method)
        if call is None:
            raise NotImplementedYet(f"there is no method {method!r}")
        await self._connected()
        with self._told():
            return await call(request, metadata=self._metadata(epoch))

    def tasks(
        self,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
        *,
        epoch: int = 0,
        admitted: Callable[[], None] | None = None,
    ) -> AsyncGenerator[tasks_pb.TaskResponse, None]:
        """Run or join a task; leaving early cancels the call, not the task's own policy."""
        stream = self._stream
        if stream is not None and stream.open and isinstance(request, tasks_pb.TaskRequest):
            return stream.tasks(method, request, epoch=epoch, admitted=admitted)
        return self._called(method, request, epoch, admitted)

    async def _called(
        self,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
        epoch: int,
        admitted: Callable[[], None] | None,
    ) -> AsyncGenerator[tasks_pb.TaskResponse, None]:
        """Run or join a task by a call of its own."""
        await self._connected()
        call = self._streams[method](request, metadata=self._metadata(epoch))
        try:
            if admitted is not None:
                # A worker sends its headers when it has taken the task, or with its first word.
                await self._guarded(call.initial_metadata())
                admitted()
            while True:
                with self._told():
                    message = cast("Any", await call.read())
                if message is aio.EOF:
                    return
                if message.WhichOneof("payload") in LAST:
                    # Its status follows at once: a call that is cancelled instead costs both sides.
                    self._ending.add(call)
                    call.add_done_callback(self._ending.discard)
                    yield message
                    return
                yield message
        finally:
            if call not in self._ending:
                call.cancel()

    def run_tasks_over(self, stream: StreamLink | None) -> None:
        """Send tasks over the worker's own TaskStream from now on, where many share a message.

        A call of gRPC costs both sides more than a short task does. None: no more.
        """
        self._stream = stream

    async def upload(
        self, chunks: AsyncIterator[files_pb.UploadChunk], *, epoch: int = 0
    ) -> files_pb.UploadSummary:
        """Send a file."""
        await self._connected()
        with self._told():
            call = self._upload(chunks, metadata=self._metadata(epoch))
            return cast("files_pb.UploadSummary", await call)

    async def download(
        self, request: files_pb.DownloadRequest, *, epoch: int = 0
    ) -> AsyncGenerator[files_pb.DownloadChunk, None]:
        """Fetch a file."""
        await self._connected()
        call = self._download(request, metadata=self._metadata(epoch))
        try:
            async for message in self._messages(call):
                yield message
        finally:
            call.cancel()

    async def close(self) -> None:
        """End every call under way with LinkLost; later ones too."""
        if self._closed:
            return
        self._closed = True
        self._closing.set()
        if self._stream is not None:
            await self._stream.close()
        await self._channel.close()

    async def _messages(self, call: Any) -> AsyncGenerator[Any, None]:
        while True:
            message = await self._guarded(call.read())
            if message is aio.EOF:
                return
            yield message

    async def _guarded(self, work: Any) -> Any:
        with self._told():
            return await work

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what grpc raises into our errors; what comes after the end does not get through."""
        try:
            yield
        except aio.AioRpcError as error:
            if self._closed:
                raise self._lost() from None
            raise from_rpc_error(error, self.worker_id) from None
        except aio.UsageError:
            raise self._lost() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and (task is None or not task.cancelling()):
                raise self._lost() from None  # closing cancelled the call, nobody cancelled us
            raise
        if self._closed:
            raise self._lost()

    async def _connected(self) -> None:
        """Return when calls can be sent, so that one that fails later was sent.

        Raises:
            LinkBroken: The worker cannot be reached; nothing was sent. LinkLost: It is closed.
        """
        if self._closed:
            raise self._lost(sent=False)
        state = self._channel.get_state(try_to_connect=True)
        if state is ChannelConnectivity.READY:
            return
        # Closing a channel does not wake who waits for its state.
        closing = asyncio.ensure_future(self._closing.wait())
        waiting = asyncio.ensure_future(self._ready(state))
        try:
            await asyncio.wait(
                {closing, waiting},
                timeout=self._connect_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._closed:
                raise self._lost(sent=False)
            if not waiting.done() or waiting.exception() is not None:
                raise LinkBroken(
                    f"worker {self.worker_id!r} cannot be reached; try again shortly", sent=False
                )
        finally:
            closing.cancel()
            waiting.cancel()
            await asyncio.gather(closing, waiting, return_exceptions=True)

    async def _ready(self, state: ChannelConnectivity) -> None:
        while state is not ChannelConnectivity.READY:
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)

    def _lost(self, *, sent: bool = True) -> LinkLost:
        return LinkLost(f"the connection to worker {self.worker_id!r} has ended", sent=sent)

    def _metadata(self, epoch: int) -> tuple[tuple[str, str], ...]:
        request_id = CALL_REQUEST_ID.get()
        return (
            *self._token,
            *(((EPOCH, str(epoch)),) if epoch else ()),
            *(((REQUEST_ID, request_id),) if request_id else ()),
        )
