from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from codegen_mcp.core.errors import InvalidRequest, NotFound, PathEscape, WrongState
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.core.task import Argv, EndedBy, PythonCode, PythonFile, TaskStatus
from codegen_mcp.languages.base import InstalledPackage, InstallRequest, InstallResult
from codegen_mcp.testing.tool_context import LocalToolContext, open_tool_context
from codegen_mcp.tools.base import ToolResult
from codegen_mcp.tools.registry import tools_by_name
from codegen_mcp.tools.run_output import MAX_TEXT_BYTES, shown

MIB = 1024 * 1024


class Recorded(LocalToolContext):
    """Also remembers the commands."""

    async def run(self, command: Any) -> Any:
        self.command = command
        return await super().run(command)


@pytest.fixture
async def ctx(tmp_path: Path) -> AsyncIterator[Recorded]:
    async with open_tool_context(tmp_path) as plain:
        yield Recorded(plain.workspace, tmp_path, {"TASK": "task"}, ResourceLimits(), None)


async def call(ctx: LocalToolContext, tool: str, **arguments: Any) -> ToolResult:
    found = tools_by_name()[tool]
    return await found.run(ctx, found.spec.arguments.model_validate(arguments))


async def run(ctx: LocalToolContext, tool: str, **arguments: Any) -> Any:
    return (await call(ctx, tool, **arguments)).value


async def test_code_runs_with_arguments_variables_and_input(ctx: Recorded) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['A'], os.environ['TASK'], input())"
    result = await call(
        ctx, "run.python", code=code, args=["x", "y z"], env_vars={"A": "1"}, stdin_text="in\n"
    )
    value: Any = result.value
    assert value.stdout == "['x', 'y z'] 1 task in\n"
    assert (value.exit_code, value.timed_out, value.ended_by) == (0, False, "exit")
    assert value.duration_ms > 0
    assert result.outcome is not None
    assert result.outcome.status is TaskStatus.SUCCESS


async def test_a_program_that_fails_is_a_result(ctx: Recorded) -> None:
    result = await call(ctx, "run.python", code="raise SystemExit('no')")
    value: Any = result.value
    assert (value.exit_code, value.stderr) == (1, "no\n")
    assert result.outcome is not None
    assert result.outcome.status is TaskStatus.FAILURE


async def test_a_program_that_takes_too_long_timed_out(ctx: Recorded) -> None:
    code = "import time; print('x', flush=True); time.sleep(60)"
    value = await run(ctx, "run.python", code=code, timeout_seconds=0.5)
    assert (value.timed_out, value.exit_code, value.stdout) == (True, 124, "x\n")


async def test_empty_code_is_a_program(ctx: Recorded) -> None:
    assert (await run(ctx, "run.python", code="")).exit_code == 0
    assert (await run(ctx, "run.shell", command="")).exit_code == 0


async def test_a_file_of_the_workspace_runs(ctx: Recorded, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/main.py").write_text("import sys; print(sys.argv)")
    value = await run(ctx, "run.python", file="./d//main.py", args=["1"])
    assert value.stdout == "['d/main.py', '1']\n"
    assert ctx.command.program == PythonFile("d/main.py")


async def test_a_file_that_looks_like_an_option_is_a_file(ctx: Recorded, tmp_path: Path) -> None:
    (tmp_path / "-c").write_text("print('ran')")
    assert (await run(ctx, "run.python", file="-c")).stdout == "ran\n"


async def test_what_is_no_file_is_refused_before_anything_runs(
    ctx: Recorded, tmp_path: Path
) -> None:
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "out").symlink_to("/etc/passwd")
    for file, error in (
        ("nothing.py", NotFound),
        ("dir", WrongState),
        ("fifo", WrongState),
        ("out", PathEscape),
        ("/etc/passwd", PathEscape),
        ("../x.py", PathEscape),
    ):
        with pytest.raises(error):
            await run(ctx, "run.python", file=file)
    assert not hasattr(ctx, "command")


async def test_exactly_one_of_code_and_file_is_needed(ctx: Recorded) -> None:
    with pytest.raises(InvalidRequest, match="neither"):
        await run(ctx, "run.python")
    with pytest.raises(InvalidRequest, match="both"):
        await run(ctx, "run.python", code="1", file="x.py")


async def test_an_empty_string_for_the_other_source_is_no_source(
    ctx: Recorded, tmp_path: Path
) -> None:
    (tmp_path / "x.py").write_text("print(1)")
    assert (await run(ctx, "run.python", code="", file="x.py")).stdout == "1\n"
    assert (await run(ctx, "run.python", code="print(2)", file="")).stdout == "1\n2\n"
    assert ctx.command.program == PythonCode(b"print(2)")


@pytest.mark.parametrize("tool", ["run.python", "run.shell"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"timeout_seconds": -1}, "timeout"),
        ({"timeout_seconds": 1e9}, "timeout"),
        ({"timeout_seconds": float("nan")}, "timeout"),
        ({"env_vars": {"": "x"}}, "name"),
        ({"env_vars": {"A=B": "x"}}, "name"),
        ({"env_vars": {"1A": "x"}}, "name"),
        ({"env_vars": {"A\n": "x"}}, "name"),
        ({"env_vars": {"A": "x\0y"}}, "NUL"),
        ({"env_vars": {"A": "x" * 200_000}}, "200000 bytes"),
        ({"env_vars": {f"A{n}": "x" * 100_000 for n in range(20)}}, "in all"),
        ({"stdin": b"a", "stdin_text": "b"}, "one of them"),
    ],
)
async def test_arguments_that_cannot_be_meant_are_refused(
    ctx: Recorded, tool: str, arguments: dict[str, Any], says: str
) -> None:
    program = {"code": "1"} if tool == "run.python" else {"command": "true"}
    with pytest.raises(InvalidRequest, match=says):
        await run(ctx, tool, **program, **arguments)
    assert not hasattr(ctx, "command")


async def test_program_arguments_are_bounded(ctx: Recorded) -> None:
    for args in (["a\0b"], ["x" * 200_000], ["x" * 100_000] * 20):
        with pytest.raises(InvalidRequest):
            await run(ctx, "run.python", code="1", args=args)
    with pytest.raises(InvalidRequest, match="to a file"):
        await run(ctx, "run.python", code="#" * (4 * MIB))
    with pytest.raises(InvalidRequest, match="to a file"):
        await run(ctx, "run.shell", command="#" * MIB)


@pytest.mark.parametrize(
    ("command", "exit_code", "stdout"),
    [
        ("false || true", 0, ""),
        ("exit 127", 127, ""),
        ("no-such-command", 127, ""),
        ("printf 'a  b\\n\\n'", 0, "a  b\n\n"),
        ("kill -9 $$", 137, ""),
        ("cat <<'E'\n$x\nE", 0, "$x\n"),
    ],
)
async def test_a_shell_command_ends_as_it_ends(
    ctx: Recorded, command: str, exit_code: int, stdout: str
) -> None:
    value = await run(ctx, "run.shell", command=command)
    assert (value.exit_code, value.stdout) == (exit_code, stdout)
    assert ctx.command.program == Argv(("/bin/sh", "-c", command))


async def test_a_shell_starts_in_a_directory_of_the_workspace(
    ctx: Recorded, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "out").symlink_to("/tmp")
    (tmp_path / "file").touch()
    assert (await run(ctx, "run.shell", command="pwd", cwd="d")).stdout == f"{tmp_path}/d\n"
    await run(ctx, "run.shell", command="pwd", cwd="link")
    assert ctx.command.cwd == "link"
    await run(ctx, "run.shell", command="pwd", cwd=".")
    assert ctx.command.cwd == ""
    errors = {"file": WrongState, "nothing": NotFound, "out": PathEscape, "..": PathEscape}
    for cwd, error in errors.items():
        with pytest.raises(error):
            await run(ctx, "run.shell", command="pwd", cwd=cwd)


def test_bad_bytes_are_shown_as_replacement_characters() -> None:
    assert shown(b"a\xffb\xe2\x82", b"") == (
        ("a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}", 0),
        ("", 0),
    )


def test_output_of_full_size_is_shown_whole() -> None:
    text = ("x" * 1023 + "\n") * 1024
    assert shown(text.encode(), text.encode()) == ((text, 0), (text, 0))


@pytest.mark.parametrize("garbage", [b"\xff" * MIB, b"\0" * MIB, os.urandom(MIB), b"\\" * MIB])
def test_garbage_of_full_size_fits_into_a_message_with_a_true_count(garbage: bytes) -> None:
    from pydantic_core import to_json

    (stdout, cut_out), (stderr, cut_err) = shown(garbage, garbage)
    assert len(to_json([stdout, stderr])) < MAX_TEXT_BYTES + 100
    assert cut_out == cut_err
    kept = MIB - cut_out
    head, tail = garbage[: kept // 2], garbage[MIB - (kept - kept // 2) :]
    if cut_out:
        assert stdout == head.decode("utf-8", "replace") + tail.decode("utf-8", "replace")
    else:
        assert stdout == garbage.decode("utf-8", "replace")


async def install(ctx: Recorded, result: InstallResult, **arguments: Any) -> ToolResult:
    asked: list[InstallRequest] = []

    async def installer(request: InstallRequest) -> InstallResult:
        asked.append(request)
        return result

    ctx._install = installer
    answer = await call(ctx, "pkg.install", **arguments)
    assert asked == [InstallRequest(**{"packages": (), **arguments})]
    return answer


async def test_an_install_answers_names_versions_and_places(ctx: Recorded) -> None:
    package = InstalledPackage(name="six", version="1.17.0", location="/venv/site-packages")
    done = InstallResult(installed=[package], failed=[], output="ok", exit_code=0)
    answer = await install(ctx, done, packages=("six",), upgrade=True, no_deps=True, index_url="u")
    assert answer.value.model_dump() == {
        "installed": ({"name": "six", "version": "1.17.0", "location": "/venv/site-packages"},),
        "failed": (),
        "output": "ok",
        "exit_code": 0,
    }
    assert answer.outcome is None


async def test_an_install_that_failed_is_a_failed_task(ctx: Recorded) -> None:
    failed = InstallResult(installed=[], failed=["nope"], output="no such", exit_code=1)
    answer = await install(ctx, failed, packages=("nope",))
    assert answer.outcome is not None
    assert answer.outcome.ended_by is EndedBy.EXIT
    assert answer.outcome.status is TaskStatus.FAILURE


@pytest.mark.parametrize("packages", [[], [""], [" "], ["x" * 2000], ["a"] * 300])
async def test_packages_that_cannot_be_meant_are_refused(
    ctx: Recorded, packages: list[str]
) -> None:
    with pytest.raises(InvalidRequest):
        await call(ctx, "pkg.install", packages=packages)
