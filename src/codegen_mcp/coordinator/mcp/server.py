"""The protocol server: lists the tools, calls them, and reads resources; for all revisions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import structlog
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    TextContent,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from structlog.contextvars import bound_contextvars

from codegen_mcp.coordinator.auth.desk import Desk
from codegen_mcp.coordinator.auth.quotas import QuotaLedger
from codegen_mcp.coordinator.auth.trail import Outcome
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.mcp.call import Call
from codegen_mcp.coordinator.mcp.catalogue import Catalogue, FaceTool, make_catalogue
from codegen_mcp.coordinator.mcp.config import McpConfig
from codegen_mcp.coordinator.mcp.failures import failed
from codegen_mcp.coordinator.mcp.isolation import isolated
from codegen_mcp.coordinator.mcp.progress import Progress, Send
from codegen_mcp.coordinator.mcp.resources import Resources
from codegen_mcp.coordinator.mcp.sessions import DefaultSession, SessionChoice
from codegen_mcp.coordinator.mcp.words import shown_name
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.clock import SystemClock
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.server.status import failure_of

log = structlog.get_logger()

Context = ServerRequestContext[Any, Any]

NAME = "codegen"
"""Short: clients put it before every tool's name, in 60 characters for both."""
TITLE = "codegen-mcp"
GONE = "codegen_mcp.gone"
"""In the scope of an HTTP request: the event that says that its caller has left."""
_STATE = "codegen_mcp.default_session"
LIST_TTL_MS = 3600_000

INSTRUCTIONS = """\
Runs Python and shell commands in isolated sandbox sessions and keeps their files.
A session has a workspace (all paths are relative to it), a Python environment, and no network.
{run_python} runs code; variables do not survive a run, files and installed packages do.
Install packages with {pkg_install}. Print what you want to see.
Every result names its session_id: pass it on to go on with the same files, above all where a \
result says that a new session was made.
Long output is shown by head and tail; {output_read} reads the rest.
For work of more than a minute set background=true and ask {task_result}.
Files that code writes into the directory artifacts/ outlive the session; images there are shown.
{session_checkpoint} saves a session, {session_restore} goes back to it, {session_fork} copies it.
A program that fails is an ordinary result with its exit code; an error result means that the \
tool itself could not work, and says what to do.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """What a server offers."""

    catalogue: Catalogue = field(default_factory=make_catalogue)
    resources: Resources = field(default_factory=Resources)


class McpServer:
    """One protocol server over one gateway; serves any number of connections.

    Attributes:
        protocol: What transports drive.
    """

    def __init__(
        self,
        gateway: Gateway,
        face: Face,
        config: McpConfig,
        *,
        principal_of: Callable[[Context], Principal],
        default: DefaultSession | None = None,
        desk: Desk | None = None,
    ) -> None:
        """Wire it.

        Args:
            gateway: Where sessions are.
            face: The tools and resources.
            config: Names and budgets.
            principal_of: Who makes a request.
            default: The session of the only connection there will be; None where each connection
                has its own, or there are none.
            desk: Where calls report; None records none, and lets the gateway count its own.
        """
        self._desk = desk or Desk(QuotaLedger(SystemClock()), None)
        self._gateway = gateway
        self._catalogue = catalogue = face.catalogue
        self._resources = face.resources
        self._config = config
        self._principal_of = principal_of
        self._default = default
        self._listed = ListToolsResult(
            tools=[tool.listed(config.tool_names) for tool in catalogue.tools]
        )
        self.protocol: Server[Any] = Server(
            NAME,
            version=config.version,
            title=TITLE,
            description="Isolated Python sessions for agents.",
            instructions=instructions(config),
            cache_hints={
                "tools/list": CacheHint(ttl_ms=LIST_TTL_MS, scope="public"),
                "resources/templates/list": CacheHint(ttl_ms=LIST_TTL_MS, scope="public"),
                "server/discover": CacheHint(ttl_ms=LIST_TTL_MS, scope="public"),
            },
            get_tool_input_schema=catalogue.schema_of,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
        )

    async def _list_tools(
        self, ctx: Context, params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return self._listed

    async def _call_tool(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        tool = self._catalogue.find(params.name)
        if tool is None:
            names = ", ".join(one.name for one in self._listed.tools)
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name[:80]!r}; there are {names}")
        with bound_contextvars(mcp_tool=tool.spec.name):
            try:
                given = params.arguments or {}
                async with self._desk.call(
                    self._principal_of(ctx), tool.spec.name, given, looks=tool.spec.read_only
                ) as outcome:
                    result = await isolated(self._answer(ctx, tool, given), _gone(ctx))
                    outcome.took_result(result.structured_content or {})
                return result
            except Exception as error:
                return failed(error, self._config)

    async def _answer(
        self, ctx: Context, tool: FaceTool, given: dict[str, Any] | None
    ) -> CallToolResult:
        arguments = tool.read(given)
        async with self._progress(ctx) as progress:
            reply = await tool.run(self._call(ctx, progress), arguments)
        return CallToolResult(
            content=[TextContent(text=reply.text), *reply.blocks],
            structured_content=reply.value.model_dump(mode="json", exclude_none=True),
        )

    async def _list_resources(
        self, ctx: Context, params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        cursor = (params.cursor if params is not None else None) or ""
        with _as_protocol_errors():
            async with self._looking(ctx, "resources/list", cursor=cursor):
                call = self._call(ctx)
                return await isolated(self._resources.list_page(call, cursor), _gone(ctx))

    async def _list_templates(
        self, ctx: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return self._resources.templates

    async def _read_resource(
        self, ctx: Context, params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        with _as_protocol_errors(uri=params.uri):
            async with self._looking(ctx, "resources/read", uri=params.uri):
                return await isolated(self._resources.read(self._call(ctx), params.uri), _gone(ctx))

    def _looking(
        self, ctx: Context, method: str, **arguments: str
    ) -> AbstractAsyncContextManager[Outcome]:
        return self._desk.call(self._principal_of(ctx), method, arguments, looks=True)

    def _call(self, ctx: Context, progress: Progress | None = None) -> Call:
        principal = self._principal_of(ctx)
        return Call(
            gateway=self._gateway,
            principal=principal,
            config=self._config,
            sessions=SessionChoice(
                self._gateway, principal, self._default or self._of_connection(ctx, principal)
            ),
            progress=progress or Progress(None, 0, 0),
        )

    def _of_connection(self, ctx: Context, principal: Principal) -> DefaultSession | None:
        """The connection's session; None on the stateless revisions, which have no connections."""
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return None
        # The library hands no public way to what lives as long as a connection.
        connection = ctx.session._connection
        default = connection.state.get(_STATE)
        if default is None:
            default = connection.state[_STATE] = DefaultSession()
            choice = SessionChoice(self._gateway, principal, default)
            connection.exit_stack.push_async_callback(choice.leave)
        assert isinstance(default, DefaultSession)
        return default

    def _progress(self, ctx: Context) -> Progress:
        send: Send | None = None
        if ctx.meta is not None and ctx.meta.get("progress_token") is not None:

            async def send(seconds: float, words: str) -> None:
                await ctx.session.report_progress(seconds, None, words)

        return Progress(send, self._config.progress_interval_s, self._config.quiet_s)


def instructions(config: McpConfig) -> str:
    """What a model is told of the whole."""
    names = (
        "run.python",
        "pkg.install",
        "output.read",
        "task.result",
        "session.checkpoint",
        "session.restore",
        "session.fork",
    )
    return INSTRUCTIONS.format(
        **{name.replace(".", "_"): shown_name(config, name) for name in names}
    )


class _as_protocol_errors:  # reads as a function does
    """Errors of resources have no result to be in: they are JSON-RPC errors (SEP-2164)."""

    def __init__(self, **facts: str) -> None:
        self._facts = facts

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, MCPError):
            failure = failure_of(error)
            raise MCPError(
                INVALID_PARAMS if isinstance(error, WorkerError) else -32603,
                failure.message,
                {"reason": failure.reason, "status": failure.code.name, **self._facts},
            ) from error


def _gone(ctx: Context) -> asyncio.Event | None:
    event = ctx.request.scope.get(GONE) if ctx.request is not None else None
    assert event is None or isinstance(event, asyncio.Event)
    return event
