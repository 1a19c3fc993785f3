"""What the tools of this face take, beside what a worker's tools take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from codegen_mcp.tools.base import ToolModel

SESSION = (
    "Handle of the session to use, from an earlier result. Leave it out for the session of this "
    "connection; where there is none, a new one is made and the result names it."
)
CHOSEN = "Handle of the session."
TASK = "Handle of the task, from the result that named it."
TASK_SESSION = "Only needed for a task that was not started with these tools."


class NoArguments(ToolModel):
    """None."""


class SessionCreateArguments(ToolModel):
    """Of session_create."""

    env_vars: Mapping[str, str] = Field(
        default={}, description="Environment of all code in the session."
    )
    language: str = Field(default="", description="'python' or, for example, 'python3.12'.")
    memory_mib: int = Field(default=0, ge=0, description="Memory limit; 0 is the server's default.")
    disk_mib: int = Field(default=0, ge=0, description="Workspace and packages; 0 is the default.")
    cpus: float = Field(default=0, ge=0, description="CPU cores; 0 is the default.")
    idle_timeout_seconds: int = Field(
        default=0, ge=0, description="Ends so long after its last call; 0 is the default."
    )
    allow_network: bool = Field(
        default=False, description="Its code may reach the hosts that this server allows."
    )
    allow_hosts: tuple[str, ...] = Field(
        default=(), description="Only these of them, like 'example.com' or '*.example.com:8443'."
    )
    auto_restore: bool = Field(
        default=True, description="Save it before it expires, and restore it when it is used again."
    )


class PageArguments(ToolModel):
    """Of session_list."""

    page: str = Field(default="", description="next_page of the result before; empty: the first.")


class SessionArguments(ToolModel):
    """Of session_status."""

    session_id: str = Field(default="", description=SESSION)


class SessionCheckpointArguments(SessionArguments):
    """Of session_checkpoint."""

    name: str = Field(
        default="", description="A name for people: letters, digits, '.', '_', '-', space."
    )


class SessionRestoreArguments(ToolModel):
    """Of session_restore."""

    checkpoint_id: str = Field(description="From session_checkpoint or session_status.")
    new_session: bool = Field(
        default=False,
        description=(
            "True: into a new session. False: the checkpoint's own session goes back to it; what "
            "was done since is lost."
        ),
    )


class SessionForkArguments(SessionArguments):
    """Of session_fork."""

    count: int = Field(default=1, ge=1, le=16, description="How many copies.")


class SessionDestroyArguments(ToolModel):
    """Of session_destroy."""

    session_id: str = Field(description=CHOSEN)
    save_checkpoint: bool = Field(default=False, description="Take a checkpoint first.")


class TaskArguments(ToolModel):
    """Of task_status and task_cancel."""

    task_id: str = Field(description=TASK)
    session_id: str = Field(default="", description=TASK_SESSION)


class TaskResultArguments(TaskArguments):
    """Of task_result."""

    wait_seconds: float = Field(
        default=30,
        ge=0,
        le=3600,
        description="How long to wait for the end of a task that still runs.",
    )


class OutputReadArguments(ToolModel):
    """Of output_read."""

    task_id: str = Field(description=TASK)
    stream: Literal["stdout", "stderr"] = Field(default="stdout", description="Which one.")
    offset: int = Field(
        default=0, ge=0, description="First byte; an omitted part's is in the result."
    )
    length: int = Field(
        default=0,
        ge=0,
        description="Bytes at most, up to 262144; 0 is as many as usual results show.",
    )
    encoding: Literal["utf-8", "base64"] = Field(
        default="utf-8", description="base64 for output that is not text."
    )
    session_id: str = Field(default="", description=TASK_SESSION)


class ArtifactListArguments(ToolModel):
    """Of artifact_list."""

    session_id: str = Field(default="", description="Only of this session; empty: of all of yours.")
    task_id: str = Field(default="", description="Only of this task.")
    page: str = Field(default="", description="next_page of the result before; empty: the first.")
