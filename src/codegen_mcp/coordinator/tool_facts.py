"""What the workers' tools are: for listing them all, and for what may be done twice."""

from __future__ import annotations

from collections.abc import Mapping

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.routes import Held, Routes
from codegen_mcp.core.errors import NotImplementedYet, WorkerError
from codegen_mcp.server.convert_tools import BY_FIELD

MOST_KEPT = 4096


class ToolFacts:
    """Asks each start of a worker once."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._known: dict[Owner, Mapping[str, pb.ToolInfo]] = {}

    async def may_repeat(self, held: Held, request: pb.TaskRequest) -> bool:
        """Whether the tool may be run again though it may have run before."""
        name = tool_of(request.typed_request)
        try:
            infos = await self._of(held.owner, held.link)
        except WorkerError:
            return False
        info = infos.get(name)
        return info is not None and (info.read_only or info.idempotent)

    async def all(self) -> pb.ListToolsResponse:
        """Every tool of any worker, by name; the first worker's word on each."""
        found: dict[str, pb.ToolInfo] = {}
        for worker in self._routes.workers.all():
            if worker.link is None:
                continue
            try:
                infos = await self._of(worker.owner, worker.link)
            except WorkerError:
                continue  # of another worker then; a tool without one cannot be used anyway
            for name, info in infos.items():
                found.setdefault(name, info)
        return pb.ListToolsResponse(tools=found.values())

    async def _of(self, owner: Owner, link: WorkerLink) -> Mapping[str, pb.ToolInfo]:
        known = self._known.get(owner)
        if known is None:
            try:
                answer = await link.unary("TaskExecution/ListTools", pb.ListToolsRequest())
            except NotImplementedYet:
                answer = pb.ListToolsResponse()
            assert isinstance(answer, pb.ListToolsResponse)
            known = {info.name: info for info in answer.tools}
            while len(self._known) >= MOST_KEPT:
                del self._known[next(iter(self._known))]
            self._known[owner] = known
        return known


def tool_of(request: tools_pb2.ToolRequest) -> str:
    """The dotted name of the tool that is asked for; empty when there is none."""
    field = request.WhichOneof("request")
    if field is None:
        return ""
    name = request.call.name if field == "call" else BY_FIELD[field].name
    # Names for models have underscores; no tool has both.
    return name if "." in name else name.replace("_", ".", 1)
