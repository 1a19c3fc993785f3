"""One call of a tool: who calls, through what, and what became of its session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message
from mcp_types import ContentBlock

from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.mcp.config import McpConfig
from codegen_mcp.coordinator.mcp.progress import Progress
from codegen_mcp.coordinator.mcp.sessions import SESSION_GONE, Chosen, SessionChoice
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.errors import NotFound
from codegen_mcp.tools.base import ToolModel

T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a handler may use."""

    gateway: Gateway
    principal: Principal
    config: McpConfig
    sessions: SessionChoice
    progress: Progress

    async def unary(self, method: str, request: Message, answer: type[M]) -> M:
        """Ask the gateway."""
        got = await self.gateway.unary(self.principal, method, request)
        assert isinstance(got, answer)
        return got

    async def in_session(self, session_id: str, do: Callable[[Chosen], Awaitable[T]]) -> T:
        """Work in the session that the call means; one that had expired is brought back first.

        Args:
            session_id: As the caller gave it; empty: see ``SessionChoice.any``.
            do: Does the work. Done again only if the session was not there at all.

        Raises:
            NotFound: The session is gone for good, or was never the caller's.
        """
        chosen = await self.sessions.any(session_id)
        try:
            return await do(chosen)
        except NotFound as error:
            if error.reason != SESSION_GONE:
                raise
            return await do(await self.sessions.again(chosen, error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a handler answers: the same facts as data and in words, and what is neither."""

    value: ToolModel
    text: str
    blocks: tuple[ContentBlock, ...] = field(default=())


Handler = Callable[[Call, ToolModel], Awaitable[Reply]]
