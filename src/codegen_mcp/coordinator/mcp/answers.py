"""What this face answers: for a model, so without bytes, and within a budget."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.tools.base import ToolModel


class Answer(ToolModel):
    """What every answer about a session has."""

    session_id: str = Field(
        default="", description="The session that was used. Pass it on to work with the same files."
    )
    restored_from: str = Field(
        default="",
        description="Set when the session had expired: the checkpoint that it was restored from.",
    )
    lost: str = Field(default="", description="What that restore could not bring back.")
    notice: str = Field(default="", description="What to know before the next call.")


class EchoAnswer(Answer):
    """Of echo."""

    message: str


class FileAnswer(Answer):
    """Of fs_read."""

    path: str
    contents: str = Field(
        default="", description="Text of the range; empty for a binary file or image."
    )
    encoding: str = Field(description="utf-8, image or binary.")
    content_type: str = ""
    size_bytes: int = Field(description="Size of the whole file.")
    offset: int = Field(description="First byte of contents.")
    next_offset: int = Field(
        default=0, description="Continue with this offset; 0 when this is the end."
    )
    uri: str = Field(default="", description="The file as a resource, where it is not text.")


class WriteAnswer(Answer):
    """Of fs_write."""

    path: str
    bytes_written: int
    sha256: str


class Entry(ToolModel):
    """One directory entry."""

    path: str
    kind: str = Field(description="file, directory, symlink, ...")
    size_bytes: int
    modified_time_ms: int = Field(description="Unix milliseconds.")
    mode: int = Field(description="Permission bits, for example 420 for 0o644.")
    link_target: str = ""


class ListAnswer(Answer):
    """Of fs_list."""

    files: tuple[Entry, ...] = Field(description="Sorted by path.")
    total_count: int = Field(description="How many match in all.")
    next_offset: int = Field(
        default=0, description="Offset of the next page; 0 when this is the last."
    )


class StatAnswer(Answer):
    """Of fs_stat."""

    path: str
    kind: str
    size_bytes: int
    modified_time_ms: int
    mode: int
    link_target: str = ""


class DeleteAnswer(Answer):
    """Of fs_delete."""

    path: str
    deleted_count: int


class MoveAnswer(Answer):
    """Of fs_move."""

    source: str
    target: str


class ArtifactItem(ToolModel):
    """One artifact."""

    artifact_id: str
    name: str
    content_type: str
    size_bytes: int
    uri: str = Field(description="Read it as a resource, or get it with artifact_get.")
    session_id: str = ""
    task_id: str = ""
    created_at_ms: int = 0


class ArtifactAnswer(ArtifactItem):
    """Of artifact_get."""

    contents: str = Field(
        default="", description="The text, for an artifact that is text and fits."
    )
    sha256: str = ""
    download_url: str = Field(
        default="", description="Where its bytes can be fetched by HTTP for a time."
    )
    notice: str = ""


class ArtifactsAnswer(ToolModel):
    """Of artifact_list."""

    artifacts: tuple[ArtifactItem, ...]
    next_page: str = Field(
        default="", description="Pass as page for the next ones; empty: no more."
    )


class TaskAnswer(Answer):
    """Of tools that run code."""

    task_id: str = Field(
        default="", description="Handle for output_read, task_status and task_result."
    )
    state: str = Field(description="finished, or running for a task in the background.")
    duration_ms: int = 0


class RunAnswer(TaskAnswer):
    """Of run_python and run_shell."""

    exit_code: int | None = Field(
        default=None, description="0 is success; not there while it runs."
    )
    ended_by: str = Field(
        default="",
        description=(
            "exit, signal, timeout, memory, pids, disk, cpu, output, cancelled or worker_lost."
        ),
    )
    remedy: str = Field(
        default="", description="What to do about it, where something stands in the way."
    )
    stdout: str = ""
    stderr: str = ""
    stdout_bytes: int = Field(default=0, description="What was printed in all.")
    stderr_bytes: int = 0
    stdout_omitted_bytes: int = Field(
        default=0, description="Of them not shown here; see output_read."
    )
    stderr_omitted_bytes: int = 0
    artifacts: tuple[ArtifactItem, ...] = Field(
        default=(), description="Files it left in artifacts/."
    )
    artifacts_omitted: int = Field(default=0, description="More of them; see artifact_list.")


class PackageItem(ToolModel):
    """One installed package."""

    name: str
    version: str


class InstallAnswer(TaskAnswer):
    """Of pkg_install."""

    exit_code: int | None = Field(
        default=None, description="0: all installed; else nothing was changed."
    )
    installed: tuple[PackageItem, ...] = ()
    failed: tuple[str, ...] = Field(default=(), description="Those that stand in the way.")
    output: str = Field(default="", description="The installer's own words.")
    remedy: str = ""


class TaskResultAnswer(RunAnswer):
    """Of task_result: as of the tool that the task ran."""

    tool: str = ""
    installed: tuple[PackageItem, ...] = ()
    failed: tuple[str, ...] = ()
    output: str = ""
    error: str = Field(default="", description="Why the tool could not do its work.")


class TaskStatusAnswer(Answer):
    """Of task_status."""

    task_id: str
    tool: str
    state: str = Field(description="queued, running or finished.")
    status: str = Field(
        default="", description="success, failure, timeout or cancelled once finished."
    )
    ended_by: str = ""
    elapsed_ms: int
    stdout_bytes: int
    stderr_bytes: int
    stage: str = ""


class TaskCancelAnswer(Answer):
    """Of task_cancel."""

    task_id: str
    cancelled: bool = Field(description="False when it had ended before, or never started.")
    state: str = Field(description="What the cancel met: queued, running or finished.")


class OutputAnswer(Answer):
    """Of output_read."""

    task_id: str
    stream: str
    contents: str = Field(description="Text, or base64 where that was asked for.")
    encoding: str
    offset: int
    length: int = Field(description="Bytes of the stream that contents stands for.")
    next_offset: int = Field(description="Continue here.")
    total_bytes: int = Field(description="Length of the stream so far.")
    end: bool = Field(description="True: nothing follows, and the task has ended.")
    replaced_bytes: int = Field(
        default=0,
        description="Bytes that are no UTF-8 and appear as U+FFFD; use encoding=base64 for them.",
    )


class SessionItem(ToolModel):
    """One session."""

    session_id: str
    state: str
    language: str = ""
    created_at_ms: int = 0
    last_activity_ms: int = 0
    active_tasks: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    last_checkpoint_id: str = ""
    notice: str = Field(default="", description="What to know before it is used.")


class SessionAnswer(SessionItem):
    """Of session_create and session_status."""

    worker_id: str = ""
    memory_limit_bytes: int = 0
    disk_limit_bytes: int = 0
    cpu_limit_millicores: int = 0
    recent_tasks: tuple[str, ...] = ()
    restored_from: str = ""
    lost: str = ""


class SessionsAnswer(ToolModel):
    """Of session_list."""

    sessions: tuple[SessionItem, ...]
    next_page: str = Field(
        default="", description="Pass as page for the next ones; empty: no more."
    )


class CheckpointAnswer(Answer):
    """Of session_checkpoint."""

    checkpoint_id: str
    name: str = ""
    size_bytes: int
    created_at_ms: int = 0


class RestoreAnswer(Answer):
    """Of session_restore."""

    checkpoint_id: str
    state: str


class ForkAnswer(Answer):
    """Of session_fork."""

    session_ids: tuple[str, ...] = Field(description="The new sessions.")


class DestroyAnswer(Answer):
    """Of session_destroy."""

    destroyed: bool
    checkpoint_id: str = Field(default="", description="Of the checkpoint that was taken before.")
    artifacts: tuple[str, ...] = Field(default=(), description="Ids of artifacts that it leaves.")
