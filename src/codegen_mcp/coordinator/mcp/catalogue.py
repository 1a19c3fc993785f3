"""Every tool of this face: a worker's, each with a session to name, and those handled here.

One new tool is one line here: a spec and the coroutine that answers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from mcp_types import Tool, ToolAnnotations
from pydantic import Field, create_model

from codegen_mcp.coordinator.mcp import (
    answers,
    artifacts,
    file_tools,
    outputs,
    run_tools,
    session_tools,
    specs,
    task_tools,
)
from codegen_mcp.coordinator.mcp.arguments import SESSION
from codegen_mcp.coordinator.mcp.call import Call, Reply
from codegen_mcp.coordinator.mcp.config import ToolNames
from codegen_mcp.coordinator.mcp.schemas import portable
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.engine.arguments import read_arguments
from codegen_mcp.tools.base import ToolModel, ToolSpec
from codegen_mcp.tools.registry import tools_by_name

BACKGROUND = (
    "True: answer at once with a task_id and let it run; task_result has its result. "
    "For work of more than about a minute."
)
REACHING = frozenset({"run.python", "run.shell"})
"""Tools whose code may be given the network."""
ALLOW_NETWORK = "True: may reach the hosts that this server allows (by HTTP_PROXY); else none."
ALLOW_HOSTS = "Only these of them: 'example.com', 'example.com:8443', '*.example.com'."
SECRETS = (
    "Names of the server's secrets to use: each is a variable with a placeholder, which becomes "
    "the secret in requests to the hosts that may have it."
)
READ_IMAGES = (
    "Read a file of the session's workspace: text as text (as much as fits into a result; go on "
    "with offset=next_offset), an image as an image to look at. Other files are described and "
    "linked; look at them with code."
)
WRITE_FILES = (
    "Create or replace a file of the session's workspace, at once from old to new. Give text in "
    "contents, or bytes in data (base64)."
)
MAKES_DIRS = "Make missing parent directories."
GET_ARTIFACT = (
    "Get an artifact by its id: text as text, an image as an image to look at, anything else or "
    "larger as a link. Files that code writes into the directory 'artifacts' of the workspace "
    "become artifacts when the run ends. Artifacts outlive their session."
)
HIDDEN = frozenset({"stdin"})
"""Arguments for programs only: bytes, which have a twin for text."""
ALIASES: Mapping[str, str] = {
    "task.get_result": "task.result",
    "task.get_status": "task.status",
}
"""Names that others use to those of ours."""
WORLD = frozenset({"pkg.install"})
"""Tools that reach something outside: the package index."""


@dataclasses.dataclass(frozen=True)
class FaceTool:
    """A tool as this face has it."""

    spec: ToolSpec
    handler: Any
    """Coroutine function of (call, arguments); arguments are of ``spec.arguments``."""

    async def run(self, call: Call, arguments: ToolModel) -> Reply:
        """Answer; raises ``core.errors`` where the tool could not do its work."""
        reply = await self.handler(call, arguments)
        assert isinstance(reply, Reply)
        return reply

    def read(self, given: Mapping[str, Any] | None) -> ToolModel:
        """Validate the arguments of a call.

        Raises:
            InvalidRequest: They are not valid; says which, and what is expected.
        """
        spec = dataclasses.replace(self.spec, name=self.spec.mcp_name)
        read = read_arguments(spec, lenient(self.input_schema, given or {}))
        if isinstance(read, InvalidRequest):
            raise read
        assert not isinstance(read, Exception)
        return read

    @cached_property
    def input_schema(self) -> dict[str, Any]:
        """What it takes, for any client."""
        return portable(self.spec.arguments)

    @cached_property
    def output_schema(self) -> dict[str, Any]:
        """What it answers, for any client."""
        return portable(self.spec.result)

    def listed(self, names: ToolNames) -> Tool:
        """Describe it."""
        spec = self.spec
        return Tool(
            name=spec.name if names == "dotted" else spec.mcp_name,
            title=spec.title,
            description=spec.description,
            input_schema=self.input_schema,
            output_schema=self.output_schema,
            annotations=ToolAnnotations(
                title=spec.title,
                read_only_hint=spec.read_only,
                destructive_hint=spec.destructive,
                idempotent_hint=spec.idempotent,
                open_world_hint=spec.name in WORLD,
            ),
        )


class Catalogue:
    """The tools, found by any of their names."""

    def __init__(self, tools: Sequence[FaceTool]) -> None:
        self.tools = tools
        self._by_name = {tool.spec.name: tool for tool in tools}
        self._by_name |= {tool.spec.mcp_name: tool for tool in tools}
        for alias, name in ALIASES.items():
            self._by_name[alias] = self._by_name[alias.replace(".", "_")] = self._by_name[name]

    def find(self, name: str) -> FaceTool | None:
        """Return a tool by its listed or its dotted name."""
        return self._by_name.get(name)

    def schema_of(self, name: str) -> Mapping[str, Any] | None:
        """Return what a tool takes; None for one that there is not."""
        tool = self.find(name)
        return None if tool is None else tool.input_schema


def lenient(schema: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Forgive what models often get wrong: null for what is left out, text for a list."""
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        kind = schema["properties"].get(name, {}).get("type")
        if value is None:
            continue
        if isinstance(value, str) and kind in ("array", "object"):
            value = _parsed(value, kind)
        arguments[name] = value
    return arguments


def _parsed(text: str, kind: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, list if kind == "array" else dict):
        return value
    return [text] if kind == "array" and text else text


def in_session(
    spec: ToolSpec,
    result: type[ToolModel],
    description: str = "",
    *,
    named: bool = True,
    fields: Mapping[str, Any] | None = None,
) -> ToolSpec:
    """Make the spec of a worker's tool one of this face.

    Args:
        spec: The worker's.
        result: What this face answers.
        description: Instead of the worker's.
        named: Whether it takes a session_id.
        fields: Arguments that differ: name to (type, field).
    """
    taken: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in spec.arguments.model_fields.items()
        if name not in HIDDEN
    }
    taken |= fields or {}
    if named:
        taken["session_id"] = (str, Field("", description=SESSION))
    if spec.runs_code:
        taken["background"] = (bool, Field(False, description=BACKGROUND))
    if spec.name in REACHING:
        taken["allow_network"] = (bool, Field(False, description=ALLOW_NETWORK))
        taken["allow_hosts"] = (tuple[str, ...], Field((), description=ALLOW_HOSTS))
        taken["secrets"] = (tuple[str, ...], Field((), description=SECRETS))
    return dataclasses.replace(
        spec,
        arguments=create_model(spec.arguments.__name__, __base__=ToolModel, **taken),
        result=result,
        description=description or spec.description,
    )


def make_catalogue() -> Catalogue:
    """Make all of them."""
    worker = {name: tool.spec for name, tool in tools_by_name().items()}
    plain, run = file_tools.plain, run_tools.run_code

    def of_worker(
        name: str, handler: Any, result: type[ToolModel], description: str = ""
    ) -> FaceTool:
        return FaceTool(in_session(worker[name], result, description), partial(handler, tool=name))

    return Catalogue(
        (
            of_worker("run.python", run, answers.RunAnswer),
            of_worker("run.shell", run, answers.RunAnswer),
            of_worker("pkg.install", run, answers.InstallAnswer),
            of_worker("fs.read", file_tools.fs_read, answers.FileAnswer, READ_IMAGES),
            FaceTool(
                in_session(
                    worker["fs.write"],
                    answers.WriteAnswer,
                    WRITE_FILES,
                    fields={file_tools.CREATE_DIRS: (bool, Field(True, description=MAKES_DIRS))},
                ),
                partial(plain, tool="fs.write"),
            ),
            of_worker("fs.list", file_tools.fs_list, answers.ListAnswer),
            of_worker("fs.stat", plain, answers.StatAnswer),
            of_worker("fs.move", plain, answers.MoveAnswer),
            of_worker("fs.delete", plain, answers.DeleteAnswer),
            FaceTool(
                in_session(
                    worker["artifact.get"], answers.ArtifactAnswer, GET_ARTIFACT, named=False
                ),
                artifacts.artifact_get,
            ),
            FaceTool(specs.ARTIFACT_LIST, artifacts.artifact_list),
            FaceTool(specs.OUTPUT_READ, outputs.output_read),
            FaceTool(specs.TASK_STATUS, task_tools.task_status),
            FaceTool(specs.TASK_RESULT, task_tools.task_result),
            FaceTool(specs.TASK_CANCEL, task_tools.task_cancel),
            FaceTool(specs.SESSION_CREATE, session_tools.session_create),
            FaceTool(specs.SESSION_LIST, session_tools.session_list),
            FaceTool(specs.SESSION_STATUS, session_tools.session_status),
            FaceTool(specs.SESSION_CHECKPOINT, session_tools.session_checkpoint),
            FaceTool(specs.SESSION_RESTORE, session_tools.session_restore),
            FaceTool(specs.SESSION_FORK, session_tools.session_fork),
            FaceTool(specs.SESSION_DESTROY, session_tools.session_destroy),
            of_worker("echo", plain, answers.EchoAnswer),
        )
    )
