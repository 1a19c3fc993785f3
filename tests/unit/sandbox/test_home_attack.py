"""The attack on the host's homes excuses an interpreter's own tree, and nothing beside it."""

from __future__ import annotations

import types
from typing import Any

import pytest

from codegen_mcp.sandbox.selftest.files import FILES

CODE = next(one.code for one in FILES if one.name == "read the host's secrets")


def seen(files: dict[str, list[str]], prefix: str) -> dict[str, Any]:
    """What ``foreign`` finds in /root and /home of a sandbox that shows these directories."""
    os = types.SimpleNamespace(
        listdir=lambda path: files[path], path=types.SimpleNamespace(realpath=str)
    )
    sys = types.SimpleNamespace(base_prefix=prefix, executable=prefix + "/bin/python3")
    space: dict[str, Any] = {"os": os, "sys": sys, "refused": lambda **_: None}
    exec(CODE, space)
    return {path: space["foreign"](path) for path in ("/root", "/home") if path in files}


@pytest.mark.parametrize(
    ("files", "prefix", "found"),
    [
        ({"/root": [".pyenv"], "/root/.pyenv": ["3.11"]}, "/root/.pyenv/3.11", {"/root": []}),
        ({"/root": [".ssh"]}, "/usr", {"/root": ["/root/.ssh"]}),
        (
            {"/root": [".pyenv", ".ssh"], "/root/.pyenv": ["3.11", "3.12"]},
            "/root/.pyenv/3.11",
            {"/root": ["/root/.pyenv/3.12", "/root/.ssh"]},
        ),
        (
            {"/home": ["ann"], "/home/ann": ["bin", "mail"], "/home/ann/bin": ["python3"]},
            "/home/ann",
            {"/home": ["/home/ann/mail"]},
        ),
        ({"/home": ["ann", "bob"], "/home/ann": ["py"]}, "/home/ann/py", {"/home": ["/home/bob"]}),
    ],
)
def test_only_the_interpreters_own_tree_is_excused(
    files: dict[str, list[str]], prefix: str, found: dict[str, list[str]]
) -> None:
    """Also when the interpreter's prefix is a whole home."""
    assert seen(files, prefix) == found
