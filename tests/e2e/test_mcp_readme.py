"""What the README gives to paste into clients is well-formed, and names what there is."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from codegen_mcp.cli.main import COMMANDS

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SECTION = README.partition("<!-- clients: begin -->")[2].partition("<!-- clients: end -->")[0]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", SECTION, re.S)


def test_every_configuration_starts_the_server_or_names_its_address() -> None:
    configurations: list[dict[str, Any]] = [
        *(json.loads(block) for block in blocks("json")),
        *(tomllib.loads(block) for block in blocks("toml")),
    ]
    assert len(configurations) == 5
    for configuration in configurations:
        (servers,) = configuration.values()
        (server,) = servers.values()
        if "command" in server:
            assert server["command"] == "codegen-mcp"
            assert server["args"][0] in COMMANDS
        else:
            assert server["url"] == "http://127.0.0.1:8080/mcp"
    assert blocks("bash") == ["claude mcp add codegen -- codegen-mcp mcp\n"]


def test_it_counts_the_tools_right() -> None:
    from codegen_mcp.coordinator.mcp.catalogue import make_catalogue

    assert f"The agent gets {len(make_catalogue().tools)} tools" in README
