from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from codegen_mcp.coordinator.mcp.catalogue import Catalogue, make_catalogue
from codegen_mcp.coordinator.mcp.config import McpConfig
from codegen_mcp.coordinator.mcp.failures import failed
from codegen_mcp.coordinator.mcp.server import NAME, instructions
from codegen_mcp.core.errors import InvalidRequest, NotFound
from codegen_mcp.tools.registry import tools_by_name

WANTED = {
    *("echo", "fs_read", "fs_write", "fs_list", "run_python", "pkg_install", "artifact_get"),
    *("session_create", "session_list", "session_status", "session_checkpoint"),
    *("session_restore", "session_fork", "session_destroy"),
    *("task_status", "task_result", "task_cancel", "artifact_list", "output_read"),
}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return make_catalogue()


def test_every_tool_of_the_worker_and_of_this_face_is_listed(catalogue: Catalogue) -> None:
    listed = {tool.listed("underscore").name for tool in catalogue.tools}
    assert listed >= WANTED
    assert listed >= {tool.spec.mcp_name for tool in tools_by_name().values()}


def test_names_are_such_that_every_client_takes_them(catalogue: Catalogue) -> None:
    for tool in catalogue.tools:
        name = tool.listed("underscore").name
        assert re.fullmatch(r"[a-z][a-z_]{0,39}", name)
        assert len(f"mcp__{NAME}__{name}") <= 60


def test_names_are_dotted_where_that_is_asked_for(catalogue: Catalogue) -> None:
    names = {tool.listed("dotted").name for tool in catalogue.tools}
    assert {"fs.read", "run.python", "output.read"} <= names
    told = instructions(McpConfig(tool_names="dotted"))
    assert "run.python" in told
    assert "run_python" not in told


def test_calls_may_use_any_name_of_a_tool(catalogue: Catalogue) -> None:
    for name in ("fs.read", "fs_read"):
        assert catalogue.find(name) is catalogue.find("fs_read")
    assert catalogue.find("task.get_result") is catalogue.find("task_result")
    assert catalogue.find("nothing") is None


def test_each_says_what_it_does_to_the_world(catalogue: Catalogue) -> None:
    hints = {
        tool.spec.name: (tool.spec.read_only, tool.spec.destructive, tool.spec.idempotent)
        for tool in catalogue.tools
    }
    assert hints["fs.read"] == (True, False, True)
    assert hints["fs.delete"][1] is True
    assert hints["session.destroy"] == (False, True, True)
    for tool in catalogue.tools:
        shown = tool.listed("underscore")
        assert shown.annotations is not None
        assert shown.title
        assert shown.description is not None
        assert 20 < len(shown.description) < 700


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from nodes(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from nodes(value)


def test_schemas_have_nothing_that_some_client_refuses(catalogue: Catalogue) -> None:
    for tool in catalogue.tools:
        for schema in (tool.input_schema, tool.output_schema):
            assert schema["type"] == "object"
            for node in nodes(schema):
                assert not {"$ref", "$defs", "anyOf", "oneOf", "allOf"} & node.keys(), (
                    tool.spec.name
                )
        assert "session_id" not in tool.input_schema.get("required", [])[1:]


def test_every_argument_is_described(catalogue: Catalogue) -> None:
    for tool in catalogue.tools:
        for name, shown in tool.input_schema["properties"].items():
            assert shown.get("description"), (tool.spec.name, name)


def test_what_all_tools_cost_a_model_is_bounded(catalogue: Catalogue) -> None:
    sent = [
        {"name": tool.spec.mcp_name, "d": tool.spec.description, "s": tool.input_schema}
        for tool in catalogue.tools
    ]
    assert len(json.dumps(sent)) < 24_000


def test_what_models_often_get_wrong_is_forgiven(catalogue: Catalogue) -> None:
    install = catalogue.find("pkg_install")
    assert install is not None
    for given in (["a", "b"], '["a", "b"]'):
        read = install.read({"packages": given, "session_id": None})
        assert list(read.packages) == ["a", "b"]  # type: ignore[attr-defined]
    assert list(install.read({"packages": "a"}).packages) == ["a"]  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequest, match="colour"):
        install.read({"packages": ["a"], "colour": "red"})


def test_errors_name_tools_as_the_caller_knows_them() -> None:
    error = NotFound("'fs.list' does not exist; fs.list shows what is there")
    for names, told in (("underscore", "fs_list"), ("dotted", "fs.list")):
        config = McpConfig(tool_names=names)  # type: ignore[arg-type]
        (block,) = failed(error, config).content
        assert block.text == f"'fs.list' does not exist; {told} shows what is there"  # type: ignore[union-attr]
