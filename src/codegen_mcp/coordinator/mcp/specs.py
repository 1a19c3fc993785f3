"""Specs of the tools whose handlers are here: sessions, tasks, artifacts, output."""

from __future__ import annotations

from codegen_mcp.coordinator.mcp import answers, arguments
from codegen_mcp.tools.base import ToolSpec

SESSION_CREATE = ToolSpec(
    name="session.create",
    title="New session",
    description=(
        "Make a new, empty session: a sandbox with its own files, Python environment and limits. "
        "Only needed for work that shall be apart from other work, for more memory or disk, or to "
        "keep a session for long; other tools make one by themselves."
    ),
    arguments=arguments.SessionCreateArguments,
    result=answers.SessionAnswer,
)
SESSION_LIST = ToolSpec(
    name="session.list",
    title="List sessions",
    description="List your sessions that live, by id.",
    arguments=arguments.PageArguments,
    result=answers.SessionsAnswer,
    read_only=True,
    idempotent=True,
)
SESSION_STATUS = ToolSpec(
    name="session.status",
    title="Session status",
    description=(
        "Tell state, memory, disk, limits, recent tasks and last checkpoint of a session. It does "
        "not bring back one that has ended."
    ),
    arguments=arguments.SessionArguments,
    result=answers.SessionAnswer,
    read_only=True,
    idempotent=True,
)
SESSION_CHECKPOINT = ToolSpec(
    name="session.checkpoint",
    title="Save session",
    description=(
        "Save a session: its files, packages and finished tasks. The answer comes when the "
        "checkpoint is safe. Take one before something risky, and go back with session_restore."
    ),
    arguments=arguments.SessionCheckpointArguments,
    result=answers.CheckpointAnswer,
)
SESSION_RESTORE = ToolSpec(
    name="session.restore",
    title="Restore session",
    description=(
        "Bring a session back to a checkpoint. In place, everything done since then is lost and "
        "code that runs is ended; with new_session=true the old session stays as it is."
    ),
    arguments=arguments.SessionRestoreArguments,
    result=answers.RestoreAnswer,
    destructive=True,
)
SESSION_FORK = ToolSpec(
    name="session.fork",
    title="Copy session",
    description=(
        "Copy a session with its files and packages, to try several ways from one state. The "
        "copies are independent of each other and of the original."
    ),
    arguments=arguments.SessionForkArguments,
    result=answers.ForkAnswer,
)
SESSION_DESTROY = ToolSpec(
    name="session.destroy",
    title="End session",
    description=(
        "End a session and delete its files. Its artifacts and checkpoints stay. Sessions that "
        "are not used end by themselves."
    ),
    arguments=arguments.SessionDestroyArguments,
    result=answers.DestroyAnswer,
    destructive=True,
    idempotent=True,
)
TASK_STATUS = ToolSpec(
    name="task.status",
    title="Task status",
    description="Tell whether a task waits, runs or has ended, and how much it has printed.",
    arguments=arguments.TaskArguments,
    result=answers.TaskStatusAnswer,
    read_only=True,
    idempotent=True,
)
TASK_RESULT = ToolSpec(
    name="task.result",
    title="Task result",
    description=(
        "Wait up to wait_seconds for the end of a task and tell its result, as the tool itself "
        "would have. A task that still runs then is answered with what it has printed so far. "
        "Results are kept while the session lives, the last 256 of it."
    ),
    arguments=arguments.TaskResultArguments,
    result=answers.TaskResultAnswer,
    read_only=True,
    idempotent=True,
)
TASK_CANCEL = ToolSpec(
    name="task.cancel",
    title="Cancel task",
    description="End a task that runs. What it wrote and printed until then stays.",
    arguments=arguments.TaskArguments,
    result=answers.TaskCancelAnswer,
    destructive=True,
    idempotent=True,
)
OUTPUT_READ = ToolSpec(
    name="output.read",
    title="Read output",
    description=(
        "Read any part of what a task printed, exactly, for example what its result left out. "
        "Output is kept while the session lives (the newest 128 MiB of it; only head and tail when "
        "the session was restored or moved)."
    ),
    arguments=arguments.OutputReadArguments,
    result=answers.OutputAnswer,
    read_only=True,
    idempotent=True,
)
ARTIFACT_LIST = ToolSpec(
    name="artifact.list",
    title="List artifacts",
    description=(
        "List artifacts, newest first. Files that code writes into the directory 'artifacts' of "
        "the workspace become artifacts when the run ends; they outlive their session."
    ),
    arguments=arguments.ArtifactListArguments,
    result=answers.ArtifactsAnswer,
    read_only=True,
    idempotent=True,
)
