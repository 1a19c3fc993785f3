"""Write docs/reference/{settings,errors,tools,mcp}.md from the code; --check only compares."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

from pydantic_settings import BaseSettings

from codegen_mcp.coordinator.mcp.catalogue import make_catalogue
from codegen_mcp.core import errors
from codegen_mcp.server.status import code_of
from codegen_mcp.settings import Settings
from codegen_mcp.tools.registry import TOOLS

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by scripts/reference.py; change the code, then run ./dev fmt. -->\n"


def settings() -> str:
    """One row a setting: variable, default, the string under the field."""
    docs: dict[str, str] = {}
    for kind in Settings.__mro__[: Settings.__mro__.index(BaseSettings)]:
        docs |= documented(kind)
    rows = [
        "# Settings\n",
        NOTE,
        "Set by environment variable or, where there is one, by flag (`codegen-mcp worker -h`).",
        "Flags win. Sizes are bytes, durations seconds; `codegen-mcp config` prints what holds.\n",
        "| variable | default | meaning |",
        "| --- | --- | --- |",
    ]
    for name in docs:
        field = Settings.model_fields[name]
        variable = str(field.validation_alias or name).upper()
        default = "`worker-` and the host's name" if field.default_factory else f"`{field.default}`"
        if default == "``":
            default = "empty"
        rows.append(f"| `{variable}` | {default} | {docs[name] or words(name)} |")
    return "\n".join(rows) + "\n"


def documented(kind: type) -> dict[str, str]:
    """The fields of one class in their order, each with the string under it."""
    tree = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    previous = ""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            previous = node.target.id
            docs[previous] = ""
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and previous:
            docs[previous] = " ".join(str(node.value.value).split())
            previous = ""
        else:
            previous = ""
    docs.pop("model_config", None)
    return docs


def words(name: str) -> str:
    """Spell out a field's name for those that say all by it."""
    return name.replace("_", " ").capitalize() + "."


def error_classes(root: type[errors.WorkerError]) -> list[type[errors.WorkerError]]:
    """The tree in order."""
    return [root, *(kind for child in root.__subclasses__() for kind in error_classes(child))]


def error_table() -> str:
    """One row a reason."""
    rows = [
        "# Errors\n",
        NOTE,
        "A call that fails has a gRPC status and, in its details, an `ErrorInfo` with a stable",
        "reason (domain `codegen.v1`), a `RequestInfo` with the request's id and, where it helps,",
        "a `RetryInfo`. A tool that cannot do its part ends its stream with a `TaskError` whose",
        "`code` is the status name. A program that fails is neither: it is a result with",
        "`ended_by` and `remedy`.\n",
        "| reason | status | try again | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for kind in error_classes(errors.WorkerError):
        meaning = (kind.__doc__ or "").strip().splitlines()[0]
        meaning = "A fault of the worker." if kind is errors.WorkerError else meaning
        again = "yes" if kind.retriable else "no"
        rows.append(f"| `{kind.reason}` | {code_of(kind('')).name} | {again} | {meaning} |")
    return "\n".join(rows) + "\n"


def tool_table() -> str:
    """One section a tool, from its spec."""
    rows = ["# Tools\n", NOTE]
    for tool in TOOLS:
        spec = tool.spec
        rows += [f"## {spec.name}\n", spec.description.strip() + "\n"]
        rows += ["| argument | type | default |", "| --- | --- | --- |"]
        for name, field in spec.arguments.model_fields.items():
            default = "required" if field.is_required() else f"`{field.get_default()!r}`"
            kind = getattr(field.annotation, "__name__", str(field.annotation))
            rows.append(f"| `{name}` | `{kind}` | {default} |".replace(" | None", " or None"))
        rows += ["", "Answers: " + ", ".join(f"`{n}`" for n in spec.result.model_fields) + ".\n"]
    return "\n".join(rows)


def cell(text: str) -> str:
    """Keep a table's bars apart from the text's."""
    return text.replace("|", "\\|")


def agent_tools() -> str:
    """One section a tool of the MCP face, from what clients are sent."""
    rows = [
        "# MCP tools\n",
        NOTE,
        "As agents see them: `codegen-mcp mcp` and `codegen-mcp serve`. `MCP_TOOL_NAMES=dotted`",
        "lists them with dots (`fs.read`), and calls may use either form. How results are made is",
        "in [concepts](../concepts/mcp.md).\n",
        "| tool | what for | changes things |",
        "| --- | --- | --- |",
    ]
    tools = make_catalogue().tools
    for tool in tools:
        spec = tool.spec
        kind = "no" if spec.read_only else "destructive" if spec.destructive else "yes"
        rows.append(f"| [`{spec.mcp_name}`](#{spec.mcp_name}) | {spec.title} | {kind} |")
    for tool in tools:
        rows += [f"\n## {tool.spec.mcp_name}\n", tool.spec.description.strip()]
        required = tool.input_schema.get("required", ())
        arguments = tool.input_schema["properties"]
        if arguments:
            rows += ["", "| argument | type | |", "| --- | --- | --- |"]
        for name, shown in arguments.items():
            must = "**required.** " if name in required else ""
            rows.append(f"| `{name}` | {shown['type']} | {must}{cell(shown['description'])} |")
        answers = ", ".join(f"`{name}`" for name in tool.output_schema["properties"])
        rows += ["", f"Answers: {answers}."]
    return "\n".join(rows) + "\n"


PAGES = {
    "settings.md": settings,
    "errors.md": error_table,
    "tools.md": tool_table,
    "mcp.md": agent_tools,
}


def main() -> int:
    """Write or compare; returns 1 when a page is not what the code says."""
    stale = []
    for name, make in PAGES.items():
        page, text = ROOT / "docs" / "reference" / name, make()
        if "--check" in sys.argv:
            if not page.exists() or page.read_text() != text:
                stale.append(name)
        else:
            page.write_text(text)
    if stale:
        print(f"docs/reference/{', '.join(stale)}: not what the code says; run ./dev fmt")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
