"""Bytes by a link: PUT and GET over HTTP in a thread, with memory that does not grow with them."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import IO, TypeVar
from urllib.parse import urlsplit

from codegen_mcp.client.access import tls_context
from codegen_mcp.client.errors import SandboxException, make_error

T = TypeVar("T")

PIECE_BYTES = 256 * 1024
SILENCE_S = 60.0
"""Without a byte in either direction a transfer is given up."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
SHOWN_BYTES = 400
STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    416: "OUT_OF_RANGE",
    503: "UNAVAILABLE",
    507: "RESOURCE_EXHAUSTED",
}


class Flow:
    """Hashes and counts what passes; told to stop, it ends the transfer at the next piece."""

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0
        self.stopped = False

    @property
    def sha256(self) -> str:
        """Of what passed."""
        return self._digest.hexdigest()

    def read(self, count: int = -1) -> bytes:
        """Give the next piece of the file."""
        assert self._file is not None
        return self.note(self._file.read(PIECE_BYTES if count < 0 else count))

    def note(self, piece: bytes) -> bytes:
        """Count a piece."""
        if self.stopped:
            raise OSError("the transfer was cancelled")
        self._digest.update(piece)
        self.size += len(piece)
        return piece


async def put(
    url: str, file: IO[bytes], size: int, content_type: str, *, headers: Mapping[str, str]
) -> str:
    """Send ``size`` bytes; their sha256."""
    flow = Flow(file)
    described = {"content-type": content_type, "content-length": str(size)}

    def work() -> None:
        request = urllib.request.Request(url, flow, described, method="PUT")
        with _open(request, headers):
            return

    await _in_thread(work, flow, url)
    return flow.sha256


async def get(
    url: str, write: Callable[[bytes], object], *, headers: Mapping[str, str]
) -> tuple[int, str]:
    """Hand every piece over, in a thread; (length, sha256)."""
    flow = Flow()

    def work() -> None:
        with _open(urllib.request.Request(url), headers) as answer:
            while piece := answer.read(PIECE_BYTES):
                write(flow.note(piece))

    await _in_thread(work, flow, url)
    return flow.size, flow.sha256


def _open(request: urllib.request.Request, headers: Mapping[str, str]) -> IO[bytes]:
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a token is for this host alone
    handlers: list[urllib.request.BaseHandler] = []
    if request.type == "https":
        handlers.append(urllib.request.HTTPSHandler(context=tls_context()))
    # A proxy of the environment knows nothing of this machine's loopback.
    if request.host and _is_loopback(request):
        handlers.append(urllib.request.ProxyHandler({}))
    opened: IO[bytes] = urllib.request.build_opener(*handlers).open(request, timeout=SILENCE_S)
    return opened


def _is_loopback(request: urllib.request.Request) -> bool:
    return urlsplit(request.full_url).hostname in LOOPBACK


async def _in_thread(work: Callable[[], T], flow: Flow, url: str) -> T:
    try:
        return await asyncio.to_thread(functools.partial(_reporting, work, url))
    except asyncio.CancelledError:
        flow.stopped = True
        raise


def _reporting(work: Callable[[], T], url: str) -> T:
    """Turn what HTTP says into the SDK's errors; the link itself is a secret and is not shown."""
    host = urlsplit(url).netloc
    try:
        return work()
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(SHOWN_BYTES).decode("utf-8", "replace").strip()
        status = STATUS.get(error.code, "INTERNAL")
        raise _failed(status, f"{host} answered {error.code}: {said}") from None
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _failed("UNAVAILABLE", f"no transfer with {host}: {reason}; try again") from None


def _failed(status: str, text: str) -> SandboxException:
    reason = "LIMIT_EXCEEDED" if status == "RESOURCE_EXHAUSTED" else ""
    return make_error(status, text, reason=reason)
