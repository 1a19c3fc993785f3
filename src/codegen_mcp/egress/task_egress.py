"""The way out of one task: opened for its runs, and closed after them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.network import NetworkDenial
from codegen_mcp.egress.config import PORT, TRUST, EgressConfig
from codegen_mcp.egress.connector import Connector
from codegen_mcp.egress.intercept import intercept
from codegen_mcp.egress.ledger import Ledger
from codegen_mcp.egress.placeholders import Placeholder
from codegen_mcp.egress.rules import Rules
from codegen_mcp.egress.session_proxy import SessionProxy
from codegen_mcp.egress.session_trust import BUNDLE, SessionTrust
from codegen_mcp.egress.streams import ByteStream, PlainStream
from codegen_mcp.egress.tunnel import carry

_PROXY = f"http://127.0.0.1:{PORT}"
CONNECTING = 8
"""Names and connections of one task that are waited for at once."""
_NO_PROXY = "localhost,127.0.0.1,::1"
ENVIRONMENT: Mapping[str, str] = {
    **dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
        _PROXY,
    ),
    "NO_PROXY": _NO_PROXY,
    "no_proxy": _NO_PROXY,
    "NODE_USE_ENV_PROXY": "1",
}
"""By which pip, uv, npm, git, curl, requests and httpx find the way out. ALL_PROXY is not a SOCKS
one, though it would be served: several clients refuse to start without a package for it."""
TRUSTING = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
)
"""By which programs find the authorities that they trust."""


class TaskEgress:
    """Implements ``Door`` for one task."""

    def __init__(
        self,
        *,
        connector: Connector,
        config: EgressConfig,
        rules: Rules,
        placeholders: Sequence[Placeholder] = (),
        trust: SessionTrust | None = None,
        server_trust: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """``trust`` and ``server_trust`` are needed with placeholders only."""
        self.config = config
        self.ledger = Ledger(config.max_bytes)
        self._connecting = asyncio.Semaphore(CONNECTING)
        self._connector = connector
        self._rules = rules
        self._placeholders = tuple(placeholders)
        self._trust = trust
        self._server_trust = server_trust

    def denials(self) -> Sequence[NetworkDenial]:
        """What the task was refused until now."""
        return self.ledger.denials()

    @asynccontextmanager
    async def opened(self, listener: socket.socket | None) -> AsyncIterator[Mapping[str, str]]:
        """Serve a sandbox while the block runs; gives the variables of its run.

        Args:
            listener: Bound in the sandbox's network namespace; None where it has none.

        Raises:
            WrongState: This sandbox cannot have a way out (EGRESS_UNAVAILABLE).
            SandboxUnavailable: Its port is taken.
        """
        if listener is None:
            raise WrongState(
                "this session's sandbox has no way out to the network; create another session",
                reason="EGRESS_UNAVAILABLE",
            )
        environment = dict(ENVIRONMENT)
        if self._placeholders:
            assert self._trust is not None
            await self._trust.ready()
            environment |= dict.fromkeys(TRUSTING, f"{TRUST}/{BUNDLE}")
            environment |= {one.secret.name: one.text.decode() for one in self._placeholders}
        async with SessionProxy(self, listener):
            yield environment

    async def connect(self, host: str, port: int) -> PlainStream:
        """Connect past every rule; a task that connects to many at once waits for itself."""
        async with self._connecting:
            return await self._connector.connect(self._rules, self.ledger, host, port)

    async def tunnel(self, host: str, port: int, client: ByteStream, server: ByteStream) -> None:
        """Carry what was promised; TLS ends here where the host may have a secret."""
        placeholders = [one for one in self._placeholders if one.secret.allows(host, port)]
        if not placeholders:
            await carry(client, server, self.ledger, idle_s=self.config.idle_s)
            return
        assert self._trust is not None
        assert self._server_trust is not None
        await intercept(
            host,
            port,
            client,
            server,
            again=lambda: self.connect(host, port),
            placeholders=placeholders,
            authority=self._trust.authority,
            trust=self._server_trust(),
            config=self.config,
            ledger=self.ledger,
        )
