"""The guide's example is taken out of the page, added as the page says, and run."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from codegen_mcp.tools import registry

GUIDE = Path(__file__).parents[3] / "docs/guides/add-a-tool.md"
TOOL = "file: src/codegen_mcp/tools/text_count.py"
TEST = "file: tests/unit/tools/test_text_count.py"
IMPORT = "import line of src/codegen_mcp/tools/registry.py"
ENTRY = "entry of TOOLS in src/codegen_mcp/tools/registry.py"


def blocks() -> dict[str, str]:
    found = re.findall(r"<!-- (.+?) -->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return dict(found)


def load(name: str, source: str, directory: Path) -> ModuleType:
    file = directory / (name.rpartition(".")[2] + ".py")
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example(tmp_path: Path) -> Iterator[ModuleType]:
    name = "codegen_mcp.tools.text_count"
    try:
        yield load(name, blocks()[TOOL], tmp_path)
    finally:
        sys.modules.pop(name, None)


def test_the_registry_takes_the_example_by_the_lines_of_the_guide(example: ModuleType) -> None:
    source = inspect.getsource(registry)
    source = source.replace("\n\nTOOLS", f"\n{blocks()[IMPORT]}\n\nTOOLS", 1)
    source = source.replace("    PkgInstallTool(),\n", f"    PkgInstallTool(),\n{blocks()[ENTRY]}")
    namespace: dict[str, object] = {"__name__": "registry_with_the_example"}
    exec(compile(source, "registry.py", "exec"), namespace)

    tools = namespace["tools_by_name"]()  # type: ignore[operator]

    assert isinstance(tools["text.count"], example.TextCountTool)
    assert tools["text.count"].spec.mcp_name == "text_count"
    assert len(tools) == len(registry.TOOLS) + 1


async def test_the_tests_of_the_guide_pass(example: ModuleType, tmp_path: Path) -> None:
    try:
        module = load("guide_test_text_count", blocks()[TEST], tmp_path)
    finally:
        sys.modules.pop("guide_test_text_count", None)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2

    for number, test in enumerate(tests):
        workspace = tmp_path / str(number)
        workspace.mkdir()
        async with asyncio.timeout(5):
            await test(workspace)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_the_example_keeps_the_house_rules(command: list[str]) -> None:
    name = TOOL.removeprefix("file: ")
    subprocess.run(
        [sys.executable, "-m", "ruff", *command, "-q", "--stdin-filename", name, "-"],
        input=blocks()[TOOL].encode(),
        check=True,
        cwd=GUIDE.parents[2],
        stdout=subprocess.DEVNULL,
    )


def test_the_guide_names_only_things_that_exist() -> None:
    from codegen_mcp.core import errors
    from codegen_mcp.tools.base import ToolContext, ToolSpec, Workspace

    text = GUIDE.read_text()

    for name in re.findall(r"ctx\.workspace\.(\w+)", text):
        assert hasattr(Workspace, name), name
    for name in re.findall(r"(?<![\w.])ctx\.(\w+)", text):
        assert hasattr(ToolContext, name), name
    for name in re.findall(r"^\| `([A-Z]\w+)` \|", text, re.MULTILINE):
        assert hasattr(errors, name), name
    for flag in ("read_only", "idempotent", "destructive", "runs_code"):
        assert f"`{flag}`" in text
        assert flag in ToolSpec.__dataclass_fields__
