"""Everything that can be set, read once from environment and flags (flags win).

Only bootstrap and the CLI see this; each component gets its own frozen config. Durations are
seconds, sizes bytes, as the names say. ``codegen-mcp config`` prints the effective values.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import SettingsConfigDict

from codegen_mcp.coordinator.auth.reach import is_local
from codegen_mcp.core.limits import GIB, KIB, MIB, ResourceLimits
from codegen_mcp.core.masking import masked
from codegen_mcp.settings_access import AccessSettings
from codegen_mcp.settings_coordinator import CoordinatorSettings
from codegen_mcp.settings_egress import EgressSettings
from codegen_mcp.settings_lifecycle import LifecycleSettings
from codegen_mcp.settings_mcp import McpSettings


class Settings(AccessSettings, CoordinatorSettings, EgressSettings, LifecycleSettings, McpSettings):
    """All settings; each field's environment variable is its name in capitals."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True
    )

    worker_id: str = Field(default_factory=lambda: f"worker-{socket.gethostname()}")
    """Name in answers and metrics."""
    host: str = "127.0.0.1"
    """Address to bind; another than loopback needs AUTH_* or insecure_no_auth."""
    grpc_port: int = Field(default=50052, ge=0, le=65535)
    """0 takes a free port, which the start-up line names."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """HTTP port for /metrics, /healthz and /readyz; 0 is off. May be the same as http_port."""
    http_port: Literal["auto"] | Annotated[int, Field(ge=0, le=65535)] = "auto"
    """HTTP port for the links of artifacts, /healthz and /readyz; auto takes a free one, 0 is off
    (then only an S3 store gives links). Of ``serve`` (default 8080, 0 is a free one) and of
    ``coordinator`` (default off): MCP, metrics and health."""
    public_url: str = ""
    """What clients reach http_port by, where that is not the host itself: https://example.com/p."""
    insecure_no_auth: bool = False
    """Accept that anybody who reaches the address may run code."""
    log_level: Literal["debug", "info", "warn", "warning", "error"] = "info"
    """JSON lines on standard error from this level on."""

    base_workspace: Path = Path("/tmp/workspaces")
    """State directory: sessions, pool, wheelhouse. One worker at a time."""
    max_sessions: int = Field(default=5, ge=1, le=10_000)
    """Sessions at once; more are refused with a hint when to try again."""
    pool_size: int = Field(default=2, ge=0, le=1_000)
    """Sandboxes booted ahead when nothing is known of the demand; 0 is none."""
    max_concurrent_runs: int = Field(default=0, ge=0)
    """Runs at once on this worker; 0 is four for each core."""
    idle_timeout_s: float = Field(default=1800.0, gt=0)
    """A session that was not used for so long is ended; it may ask for another time."""
    max_age_s: float = Field(default=24 * 3600.0, gt=0)
    """After this a session is ended, used or not."""
    drain_grace_s: float = Field(default=20.0, ge=0)
    """How long running tasks may go on when the worker or a session ends gently."""

    sandbox: str = Field(default="auto", validation_alias=AliasChoices("SANDBOX", "WORKER_SANDBOX"))
    """auto, gvisor, container, bubblewrap, bubblewrap-noproc, process-hardened or process-bare."""
    tenancy: Literal["trusted", "hostile"] = "trusted"
    """hostile: auto begins with gVisor and containers, and what shares the host is refused."""
    require_isolation: str = "bubblewrap"
    """The weakest isolation level that is accepted."""
    container_image: str = ""
    """Image of a container session that names none; the engine must have it, nothing is pulled."""
    uid_range: str = "200000-265535"
    """Host uids for sessions of a root worker."""
    volume: Literal["auto", "loop", "reflink", "project", "overlay", "tmpfs", "plain"] = "auto"
    """Where sessions' bytes lie; auto: the first of loop, reflink, project, plain that works."""
    disk_overcommit: bool = False
    """Promise more disk than there is; writers are stopped before the host is full."""
    disk_reserve_bytes: int = Field(default=1 * GIB, ge=0)
    """Free space on the host that is never promised."""
    memory_reserve_bytes: int = Field(default=0, ge=0)
    """Memory kept for the host and the worker; 0 is a tenth, at least 256 MiB."""
    private_mounts: bool = True
    """Keep the worker's mounts in a namespace of its own, which the kernel clears when it dies."""

    memory_bytes: int = Field(default=512 * MIB, gt=0)
    """Memory of a session that asks for none; so for CPU, disk and processes below."""
    cpu_millicores: int = Field(default=1000, gt=0)
    """1000 is one core."""
    disk_bytes: int = Field(default=1 * GIB, gt=0)
    """Workspace and environment together."""
    pids: int = Field(default=256, gt=0)
    """Processes and threads at once."""
    output_bytes: int = Field(default=64 * MIB, gt=0)
    """What one run may print; more ends it."""
    task_timeout_s: float = Field(default=60.0, gt=0)
    """Wall time of a task that names none."""
    max_task_timeout_s: float = Field(default=3600.0, gt=0)
    """The longest wall time that a task may ask for."""
    task_cpu_s: float = Field(default=0.0, ge=0)
    """CPU-time budget of one run; 0 is none."""
    max_memory_bytes: int = Field(default=8 * GIB, gt=0)
    """The most that a session may ask for; likewise the two below."""
    max_cpu_millicores: int = Field(default=64_000, gt=0)
    """See above."""
    max_disk_bytes: int = Field(default=16 * GIB, gt=0)
    """See above."""
    result_output_bytes: int = Field(default=1 * MIB, ge=2 * KIB, le=1 * MIB)
    """Head and tail kept of each stream in a result."""
    task_queue: int = Field(default=16, ge=0)
    """Runs that may wait in one session."""

    python_interpreters: str = ""
    """Colon-separated paths to use beside those that are found."""
    language: str = "python"
    """What a session gets that names none: ``python`` or, for example, ``python3.12``."""
    package_index_urls: str = ""
    """Space-separated; the first is the default. Empty: the default index of pip."""
    package_index_offline: bool = False
    """Install only what the wheelhouse has."""
    wheelhouse_bytes: int = Field(default=4 * GIB, gt=0)
    """Size of the shared wheelhouse; what was unused for longest goes first."""

    checkpoint_dir: str = ""
    """Where checkpoints and artifacts are kept: ``/path`` or ``s3://bucket/prefix``; empty is
    ``store`` in the state directory."""
    max_checkpoints: int = Field(default=10, ge=1, le=10_000)
    """Kept of one session; the oldest go first."""
    checkpoint_interval_s: float = Field(default=0.0, ge=0)
    """How often a session that was changed is saved by itself; 0 is never. It may ask otherwise."""
    artifact_ttl_s: float = Field(default=7 * 24 * 3600.0, gt=0)
    """An artifact is deleted so long after it was recorded; it outlives its session."""
    max_artifact_bytes: int = Field(default=4 * GIB, gt=0)
    """Of one artifact."""
    max_session_artifact_bytes: int = Field(default=16 * GIB, gt=0)
    """Of all artifacts of one session."""
    artifact_store_bytes: int = Field(default=64 * GIB, gt=0)
    """Of all artifacts; more are refused until some are deleted or their time is over."""

    @field_validator("public_url")
    @classmethod
    def _http(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in {"http", "https"} or not parts.netloc or parts.query):
            raise ValueError("must be like https://example.com or https://example.com/path")
        return value.rstrip("/")

    @field_validator("base_workspace")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def limits(self) -> ResourceLimits:
        """Limits of a session that asks for none."""
        return ResourceLimits(
            memory_bytes=self.memory_bytes,
            cpu_millicores=self.cpu_millicores,
            disk_bytes=self.disk_bytes,
            pids=self.pids,
            file_size_bytes=self.disk_bytes,
            output_bytes=self.output_bytes,
            timeout_s=min(self.task_timeout_s, self.max_task_timeout_s),
            max_timeout_s=self.max_task_timeout_s,
            cpu_s=self.task_cpu_s,
        )

    @property
    def maximum_limits(self) -> ResourceLimits:
        """The most that a session may ask for."""
        return ResourceLimits(
            memory_bytes=max(self.max_memory_bytes, self.memory_bytes),
            cpu_millicores=max(self.max_cpu_millicores, self.cpu_millicores),
            disk_bytes=max(self.max_disk_bytes, self.disk_bytes),
            file_size_bytes=max(self.max_disk_bytes, self.disk_bytes),
            pids=max(4096, self.pids),
            output_bytes=self.output_bytes,
            timeout_s=self.max_task_timeout_s,
            max_timeout_s=self.max_task_timeout_s,
            cpu_s=self.task_cpu_s,
            concurrent_tasks=256,
            open_files=65536,
        )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the worker."""
        return is_local(self.host)

    def shown(self) -> dict[str, object]:
        """Return the effective values with secrets masked."""
        values = self.model_dump(mode="json")
        return {k: masked(v) if isinstance(v, str) else v for k, v in values.items()}
