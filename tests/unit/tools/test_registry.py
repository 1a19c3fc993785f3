from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from codegen_mcp.testing.tool_context import open_tool_context
from codegen_mcp.tools.base import ToolSpec
from codegen_mcp.tools.registry import TOOLS, tools_by_name

SPECS = [tool.spec for tool in TOOLS]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])


def test_every_tool_has_a_name_of_its_own() -> None:
    assert len(tools_by_name()) == len(TOOLS)
    assert len({spec.mcp_name for spec in SPECS}) == len(TOOLS)


def test_the_seeds_and_our_own_tools_are_there() -> None:
    assert set(tools_by_name()) >= {
        "echo",
        "fs.read",
        "fs.write",
        "fs.list",
        "fs.stat",
        "fs.delete",
        "fs.move",
        "run.python",
        "run.shell",
        "pkg.install",
    }


@every_spec
def test_a_spec_tells_a_reader_without_a_manual_what_to_send(spec: ToolSpec) -> None:
    assert re.fullmatch(r"[a-z]+(\.[a-z_]+)?", spec.name)
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", spec.mcp_name)
    assert 40 < len(spec.description) < 1000
    assert spec.title
    schema = spec.arguments.model_json_schema()
    if spec.name != "echo":
        for name, field in schema["properties"].items():
            assert field.get("description"), f"{spec.name}.{name}"
    spec.result.model_json_schema()


@every_spec
def test_arguments_are_frozen_and_refuse_what_they_do_not_know(spec: ToolSpec) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        spec.arguments.model_validate({"no_such_field": 1})
    assert spec.arguments.model_config["frozen"]
    assert spec.result.model_config["frozen"]


def test_a_tool_that_only_reads_says_so() -> None:
    reading = {spec.name for spec in SPECS if spec.read_only}
    assert reading >= {"echo", "fs.read", "fs.list", "fs.stat"}
    assert not any(spec.destructive or spec.runs_code for spec in SPECS if spec.read_only)
    running = {spec.name for spec in SPECS if spec.runs_code}
    assert running >= {"run.python", "run.shell", "pkg.install"}


async def test_echo_answers_with_what_was_sent(tmp_path: Path) -> None:
    tool = tools_by_name()["echo"]
    async with open_tool_context(tmp_path) as ctx:
        result = await tool.run(ctx, tool.spec.arguments.model_validate({"message": "a\nb"}))
        await ctx.progress(50, "half", "")
    assert result.value.model_dump() == {"message": "a\nb"}
    assert ctx.progress_told == [(50, "half", "")]
    assert (ctx.session_id, ctx.task_id) == ("ses_test", "task_test")
