"""The Docker Engine API over a Unix socket, as Docker and Podman serve it: the few calls needed.

Source: https://docs.docker.com/engine/api/v1.41/. Each call is one connection in a thread.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from codegen_mcp.core.errors import SandboxUnavailable

VERSION = "v1.41"
"""Docker 20.10 and later, Podman 3 and later."""
TIMEOUT_S = 60.0
_ANSWER_BYTES = 8 * 1024 * 1024


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ContainerApi:
    """One engine.

    Args:
        path: Its socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Any:
        """Make one call and return the answer's JSON (None when it is empty).

        Cancelled: the call goes on in its thread, and its answer is dropped.

        Raises:
            SandboxUnavailable: The engine cannot be reached or refuses, with its own words.
        """
        return await asyncio.to_thread(self.call_now, method, path, query, body)

    def call_now(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Any:
        """The same, blocking."""
        target = f"/{VERSION}{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        connection = _UnixConnection(self.path)
        try:
            content = json.dumps(body).encode() if body is not None else None
            headers = {"Content-Type": "application/json"} if content else {}
            connection.request(method, target, content, headers)
            answer = connection.getresponse()
            text = answer.read(_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise SandboxUnavailable(
                f"the container engine at {self.path!r} does not answer: {error}"
            ) from error
        finally:
            connection.close()
        try:
            value = json.loads(text) if text.strip() else None
        except ValueError:
            value = {"message": text[:300].decode(errors="replace")}
        if answer.status >= 400 and not (method == "DELETE" and answer.status == 404):
            said = value.get("message") or value.get("cause") if isinstance(value, dict) else ""
            raise SandboxUnavailable(f"the container engine refuses: {said or answer.reason}")
        return value
