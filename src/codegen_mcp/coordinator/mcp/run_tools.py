"""run_python, run_shell and pkg_install: until done, or in the background."""

from __future__ import annotations

from typing import Any

from codegen_mcp.coordinator.mcp import artifacts
from codegen_mcp.coordinator.mcp.answers import (
    ArtifactItem,
    InstallAnswer,
    PackageItem,
    RunAnswer,
)
from codegen_mcp.coordinator.mcp.budget import HeadTail
from codegen_mcp.coordinator.mcp.call import Call, Reply
from codegen_mcp.coordinator.mcp.config import McpConfig
from codegen_mcp.coordinator.mcp.follow import Followed, follow, restore_facts
from codegen_mcp.coordinator.mcp.run_reply import (
    run_answer,
    run_text,
    session_fields,
    session_words,
)
from codegen_mcp.coordinator.mcp.sessions import Chosen
from codegen_mcp.coordinator.mcp.tasks import EXECUTE, start, task_request
from codegen_mcp.coordinator.mcp.words import duration, paragraphs, shown_name
from codegen_mcp.tools.base import ToolModel

NETWORK = ("allow_network", "allow_hosts", "secrets")
"""Arguments of this face that are the task's and not its tool's."""
SHOWN_PACKAGES = 200
KEPT = (
    "Its result and output are kept while the session lives (the session's last 256 tasks); a task "
    "in the background keeps its session alive."
)


async def run_code(call: Call, arguments: ToolModel, *, tool: str) -> Reply:
    """Run a tool that runs code."""
    given = arguments.model_dump(exclude_defaults=True)
    session_id, background = given.pop("session_id", ""), given.pop("background", False)
    network = {name: given.pop(name) for name in NETWORK if name in given}

    async def do(chosen: Chosen) -> Reply:
        request = task_request(chosen.session_id, tool, given, background=background, **network)
        call.progress.running()
        if background:
            got = await start(call, request)
            got.task_id = got.task_id or request.task_id
            if not got.finished:
                return _running(call.config, tool, chosen, got)
        else:
            got = await follow(call, EXECUTE, request)
        return await finished(call, tool, await with_restore(call, chosen, got), got)

    return await call.in_session(session_id, do)


async def with_restore(call: Call, chosen: Chosen, got: Followed) -> Chosen:
    """Add what is known of a restore that the worker did for this task."""
    if not got.restored:
        return chosen
    source, lost = await restore_facts(call, chosen.session_id)
    return Chosen(
        session_id=chosen.session_id,
        notice=chosen.notice,
        is_default=chosen.is_default,
        restored_from=source,
        lost=lost,
    )


async def finished(call: Call, tool: str, chosen: Chosen, got: Followed) -> Reply:
    """Answer for a task that has ended.

    Raises:
        WorkerError: The tool could not do its work.
    """
    result = got.check()
    if tool == "pkg.install":
        answer = install_answer(call.config, chosen, got)
        return Reply(value=answer, text=_install_text(answer, chosen))
    found: list[ArtifactItem] = []
    if result.artifacts:
        found = list(await artifacts.of_task(call, chosen.session_id, got.task_id))
    run = run_answer(call.config, chosen, got, found)
    return Reply(
        value=run,
        text=run_text(call.config, run, chosen),
        blocks=await artifacts.blocks(call, chosen.session_id, run.artifacts),
    )


def install_answer(config: McpConfig, chosen: Chosen, got: Followed) -> InstallAnswer:
    """Say what an install did."""
    result, answer = got.check(), got.answer
    said = HeadTail(config.form_bytes)
    said.add(str(answer.get("output", "")).encode("utf-8", "replace"))
    shown = said.shown(config.form_bytes // 2)
    return InstallAnswer(
        **session_fields(chosen),
        task_id=got.task_id,
        state="finished",
        duration_ms=result.metadata.duration_ms,
        exit_code=answer.get("exit_code", result.metadata.exit_code),
        installed=tuple(
            PackageItem(name=one["name"], version=one["version"])
            for one in answer.get("installed", ())[:SHOWN_PACKAGES]
        ),
        failed=tuple(answer.get("failed", ())),
        output=shown.joined(f"[{shown.omitted:,} bytes are left out here]"),
        remedy=result.metadata.remedy,
    )


def _install_text(answer: InstallAnswer, chosen: Chosen) -> str:
    installed = ", ".join(f"{one.name} {one.version}" for one in answer.installed)
    return paragraphs(
        f"installed: {installed}" if installed else "",
        "all of it was installed already" if not installed and answer.exit_code == 0 else "",
        f"not installed, nothing was changed: {', '.join(answer.failed) or 'see below'}"
        if answer.exit_code
        else "",
        answer.output if answer.exit_code else "",
        answer.remedy,
        f"[{duration(answer.duration_ms)}]",
        f"session_id={answer.session_id} task_id={answer.task_id}",
        session_words(chosen),
    )


def _running(config: McpConfig, tool: str, chosen: Chosen, got: Followed) -> Reply:
    facts: dict[str, Any] = {
        **session_fields(chosen),
        "task_id": got.task_id,
        "state": "running",
    }
    result, stop = shown_name(config, "task.result"), shown_name(config, "task.cancel")
    words = (
        f'It runs in the background. {result}(task_id="{got.task_id}") waits for its end, '
        f"{stop} ends it. {KEPT}"
    )
    facts["notice"] = paragraphs(chosen.notice, words)
    kind = InstallAnswer if tool == "pkg.install" else RunAnswer
    return Reply(
        value=kind(**facts),
        text=paragraphs(
            words,
            f"session_id={chosen.session_id} task_id={got.task_id}",
            session_words(chosen),
        ),
    )
