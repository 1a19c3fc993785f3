"""artifact.get as a tool, and its place in the registry."""

from __future__ import annotations

import pytest

from codegen_mcp.core.errors import LimitExceeded, NotFound
from codegen_mcp.testing.tool_context import open_tool_context
from codegen_mcp.tools.artifact_get import (
    MAX_RESULT_BYTES,
    ArtifactGetArguments,
    ArtifactGetResult,
    ArtifactGetTool,
)
from codegen_mcp.tools.base import ArtifactContent
from codegen_mcp.tools.registry import tools_by_name


def content(size: int) -> ArtifactContent:
    return ArtifactContent(
        artifact_id="art", name="a.bin", content_type="text/plain", data=b"\xff" * size
    )


async def test_it_gives_all_bytes_and_what_they_are(tmp_path):
    async with open_tool_context(tmp_path) as context:
        context.artifacts["art"] = content(MAX_RESULT_BYTES)
        result = await ArtifactGetTool().run(context, ArtifactGetArguments(artifact_id="art"))
    value = result.value
    assert isinstance(value, ArtifactGetResult)
    assert value.data == b"\xff" * MAX_RESULT_BYTES
    assert (value.size_bytes, value.content_type, value.name) == (
        MAX_RESULT_BYTES,
        "text/plain",
        "a.bin",
    )
    assert ArtifactGetResult.model_validate_json(value.model_dump_json()) == value


async def test_more_than_fits_and_what_is_not_there_are_errors(tmp_path):
    async with open_tool_context(tmp_path) as context:
        context.artifacts["art"] = content(MAX_RESULT_BYTES + 1)
        with pytest.raises(LimitExceeded):
            await ArtifactGetTool().run(context, ArtifactGetArguments(artifact_id="art"))
        with pytest.raises(NotFound):
            await ArtifactGetTool().run(context, ArtifactGetArguments(artifact_id="none"))


def test_it_can_be_asked_for_by_its_name():
    spec = tools_by_name()["artifact.get"].spec
    assert (spec.read_only, spec.runs_code) == (True, False)
