"""Passes HTTP/1.1 requests on, one after the other, read and written anew (h11).

What leaves is what was understood: a field that could be read in two ways does not get through.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import h11

from codegen_mcp.egress.base import Refused, Unreachable
from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.http_messages import (
    BadMessage,
    Route,
    check_framing,
    passed_on,
    refusal,
    upgrade_of,
)
from codegen_mcp.egress.ledger import Ledger
from codegen_mcp.egress.streams import ByteStream
from codegen_mcp.egress.tunnel import Change, carry

Fields = list[tuple[bytes, bytes]]


class Way(Protocol):
    """Where requests go, and what is changed in them."""

    def route(self, request: h11.Request) -> Route:
        """Read where a request goes; BadMessage."""

    async def open(self, route: Route) -> ByteStream:
        """Connect; Refused, Unreachable."""

    def request_fields(self, fields: Fields) -> Fields:
        """Return the fields that leave."""

    def response_fields(self, fields: Fields) -> Fields:
        """Return the fields that come in; BadMessage when the answer may not."""

    def body_change(self) -> Change | None:
        """What is done to an answer's body; None is nothing."""


class HttpRelay:
    """The requests of one client connection.

    Args:
        client: The connection.
        config: Bounds.
        ledger: Counts.
        way: Where to.
    """

    def __init__(self, client: ByteStream, config: EgressConfig, ledger: Ledger, way: Way) -> None:
        self._client = client
        self._config = config
        self._ledger = ledger
        self._way = way
        self._near = h11.Connection(h11.SERVER, max_incomplete_event_size=config.header_bytes)
        self._far: h11.Connection | None = None
        self._server: ByteStream | None = None
        self._at: tuple[str, int] | None = None

    async def serve(self) -> h11.Request | None:
        """Serve until the client is done; returns a CONNECT request, unanswered.

        Raises:
            OSError: One side broke. OverLimit, Idle.
        """
        first = True
        try:
            while True:
                request = await self._next_request(first)
                if request is None or request.method == b"CONNECT":
                    return request
                check_framing(request.headers)
                if not await self._exchange(request):
                    return None
                first = False
        except h11.RemoteProtocolError as error:
            await self.answer(error.error_status_hint, str(error))
        except BadMessage as error:
            await self.answer(error.status, str(error))
        except Refused as error:
            await self.answer(403, str(error))
        except Unreachable as error:
            await self.answer(502, str(error))
        finally:
            await self._leave()
        return None

    async def answer(self, status: int, why: str) -> None:
        """Answer for the server, if nothing was answered yet."""
        if self._near.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        response, body = refusal(status, why)
        try:
            head = self._near.send(response) or b""
            await self._client.write(head + (self._near.send(h11.Data(data=body)) or b""))
        except h11.LocalProtocolError:
            return  # it is beyond answering

    async def accept_connect(self) -> bytes:
        """Promise a tunnel; returns what the client sent for it already."""
        await self._client.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return self._near.trailing_data[0]

    async def _next_request(self, first: bool) -> h11.Request | None:
        if self._near.trailing_data[0] == b"" and not first:
            async with asyncio.timeout(self._config.idle_s):
                self._near.receive_data(await self._client.read())
        try:
            async with asyncio.timeout(self._config.header_s):
                event = await self._client_event()
        except TimeoutError:
            raise BadMessage(408, f"no whole request in {self._config.header_s:g} s") from None
        return event if isinstance(event, h11.Request) else None

    async def _client_event(self) -> h11.Event:
        while True:
            event = self._near.next_event()
            if event is h11.NEED_DATA:
                if self._near.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self._client.write(self._near.send(go_on) or b"")
                self._near.receive_data(await self._client.read())
            elif isinstance(event, h11.Event):
                return event
            else:
                return h11.ConnectionClosed()

    async def _server_event(self, far: h11.Connection, server: ByteStream) -> h11.Event:
        while True:
            event = far.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout(self._config.idle_s):
                    data = await server.read()
                self._ledger.count(received=len(data))
                far.receive_data(data)
            elif isinstance(event, h11.Event):
                return event
            else:
                return h11.ConnectionClosed()

    async def _exchange(self, request: h11.Request) -> bool:
        """Pass a request on and its answer back; False when the connection ends with it."""
        route = self._way.route(request)
        far, server = await self._reach(route)
        fields = self._way.request_fields(passed_on(request.headers))
        fields = [(b"host", route.authority), *(f for f in fields if f[0] != b"host")]
        fields += upgrade_of(request.headers)
        head = far.send(h11.Request(method=request.method, target=route.target, headers=fields))
        await self._send(server, head)
        upload = asyncio.ensure_future(self._upload(far, server))
        try:
            switched = await self._download(far, server)
            if switched:
                upload.cancel()
                await asyncio.gather(upload, return_exceptions=True)
                await self._carry(far, server)
                return False
        finally:
            finished = upload.done() and not upload.cancelled() and upload.exception() is None
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)
        if not finished or self._near.our_state is not h11.DONE:
            return False
        if self._near.their_state is not h11.DONE:
            return False
        self._near.start_next_cycle()
        if far.our_state is h11.DONE and far.their_state is h11.DONE:
            far.start_next_cycle()
        else:
            await self._leave()
        return True

    async def _reach(self, route: Route) -> tuple[h11.Connection, ByteStream]:
        at = route.host, route.port
        if self._far is None or self._server is None or self._at != at:
            await self._leave()
            self._server = await self._way.open(route)
            self._far = h11.Connection(
                h11.CLIENT, max_incomplete_event_size=self._config.header_bytes
            )
            self._at = at
        return self._far, self._server

    async def _upload(self, far: h11.Connection, server: ByteStream) -> None:
        while True:
            async with asyncio.timeout(self._config.idle_s):
                event = await self._client_event()
            if isinstance(event, h11.Data):
                await self._send(server, far.send(h11.Data(data=event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self._send(server, far.send(h11.EndOfMessage()))
                return
            else:
                return

    async def _download(self, far: h11.Connection, server: ByteStream) -> bool:
        """Pass an answer back; True when the protocol was changed by it."""
        change: Change | None = None
        while True:
            try:
                event = await self._server_event(far, server)
            except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
                if isinstance(error, TimeoutError):
                    raise Unreachable("the server does not answer") from None
                raise Unreachable(f"the server's answer is no HTTP ({error})") from None
            out: bytes | None = None
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    fields = self._way.response_fields(passed_on(event.headers))
                    fields += upgrade_of(event.headers)
                    granted = h11.InformationalResponse(status_code=101, headers=fields)
                    await self._client.write(self._near.send(granted) or b"")
                    return True
                continue
            if isinstance(event, h11.Response):
                check_framing(event.headers)
                out = self._near.send(
                    h11.Response(
                        status_code=event.status_code,
                        headers=self._way.response_fields(passed_on(event.headers)),
                    )
                )
                change = self._way.body_change()
            elif isinstance(event, h11.Data):
                data = bytes(event.data)
                data = data if change is None else change(data)
                out = self._near.send(h11.Data(data=data)) if data else None
            elif isinstance(event, h11.EndOfMessage):
                rest = b"" if change is None else change(b"")
                out = (self._near.send(h11.Data(data=rest)) or b"") if rest else b""
                out += self._near.send(h11.EndOfMessage()) or b""
                if out:
                    await self._client.write(out)
                return False
            else:
                raise Unreachable("the server closed the connection without an answer")
            if out:
                await self._client.write(out)

    async def _carry(self, far: h11.Connection, server: ByteStream) -> None:
        """Go on in the protocol that both agreed on."""
        await carry(
            _Prefixed(self._client, self._near.trailing_data[0]),
            _Prefixed(server, far.trailing_data[0]),
            self._ledger,
            idle_s=self._config.idle_s,
            back=self._way.body_change(),
        )

    async def _send(self, server: ByteStream, data: bytes | None) -> None:
        if data:
            self._ledger.count(sent=len(data))
            await server.write(data)

    async def _leave(self) -> None:
        if self._server is not None:
            server, self._server, self._far, self._at = self._server, None, None, None
            await server.aclose()


class _Prefixed:
    """A stream of which something was read already."""

    def __init__(self, inner: ByteStream, head: bytes) -> None:
        self._inner = inner
        self._head = head

    async def read(self) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        return await self._inner.read()

    async def write(self, data: bytes) -> None:
        await self._inner.write(data)

    async def finish(self) -> None:
        await self._inner.finish()

    async def aclose(self) -> None:
        await self._inner.aclose()
