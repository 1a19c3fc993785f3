"""Shell commands of a session: ``sandbox.commands``."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.client.errors import CommandExitException, make_error
from codegen_mcp.client.results import CommandResult
from codegen_mcp.client.task_runner import OutputHandler, TaskRunner, command_result


class Commands:
    """Runs commands by ``/bin/sh -c``; each in fresh processes, one at a time in a session."""

    def __init__(self, runner: TaskRunner) -> None:
        self._runner = runner

    async def run(
        self,
        cmd: str,
        *,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
        on_stdout: OutputHandler | None = None,
        on_stderr: OutputHandler | None = None,
        timeout: float | None = None,
        allow_network: bool = False,
        allow_hosts: Sequence[str] = (),
        secrets: Sequence[str] = (),
        check: bool = True,
    ) -> CommandResult:
        """Run a command and wait for its end.

        Args:
            cmd: Shell text.
            cwd: Directory relative to the workspace.
            envs: Variables on top of the session's.
            stdin: What it reads; None is end of file at once.
            on_stdout: Called with text as it is printed.
            on_stderr: Likewise for errors.
            timeout: Seconds; None is the session's default.
            allow_network: Open the way out, as far as the allow lists go.
            allow_hosts: An own allow list, which narrows the session's: ``example.com``,
                ``*.example.com:8443``.
            secrets: Names of the worker's secrets that it uses; it sees placeholders.
            check: Raise when it did not end by exit code 0.

        Raises:
            CommandExitException: ``check`` is set and it did not exit 0; has the result.
            SandboxException: The worker could not do its part.
        """
        import json

        arguments: dict[str, object] = {"command": cmd}
        if cwd:
            arguments["cwd"] = cwd
        if stdin is not None:
            raw = stdin.encode() if isinstance(stdin, str) else stdin
            arguments["stdin"] = base64.b64encode(raw).decode()
        request = tools_pb2.ToolRequest(
            call=tools_pb2.ToolCall(name="run.shell", arguments_json=json.dumps(arguments))
        )
        response = await self._runner.follow(
            request,
            envs=envs,
            timeout=timeout,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            allow_network=allow_network,
            allow_hosts=allow_hosts,
            secrets=secrets,
        )
        value: dict[str, str] = {}
        answer = response.result.typed_response
        if answer.HasField("call"):
            value = json.loads(answer.call.result_json)
        done = command_result(
            response, stdout=value.get("stdout", ""), stderr=value.get("stderr", "")
        )
        if check and not done.ok:
            raise CommandExitException(done)
        return done


class Python:
    """Runs Python programs, as ``python FILE`` would."""

    def __init__(self, runner: TaskRunner) -> None:
        self._runner = runner

    async def run(
        self,
        code: str | None,
        *,
        file: str | None,
        args: tuple[str, ...],
        envs: Mapping[str, str] | None,
        stdin: str | bytes | None,
        on_stdout: OutputHandler | None,
        on_stderr: OutputHandler | None,
        timeout: float | None,
        allow_network: bool,
        allow_hosts: Sequence[str],
        secrets: Sequence[str],
    ) -> CommandResult:
        """Run code or a file of the workspace."""
        if (code is None) == (file is None):
            raise make_error("INVALID_ARGUMENT", "give either code or file")
        raw = stdin.encode() if isinstance(stdin, str) else stdin or b""
        request = tools_pb2.RunPythonRequest(args=args, env_vars=envs or {}, stdin=raw)
        if code is not None:
            request.code = code
        else:
            request.file = file or ""
        response = await self._runner.follow(
            tools_pb2.ToolRequest(run_python=request),
            timeout=timeout,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            allow_network=allow_network,
            allow_hosts=allow_hosts,
            secrets=secrets,
        )
        answer = response.result.typed_response.run_python
        return command_result(response, stdout=answer.stdout, stderr=answer.stderr)
