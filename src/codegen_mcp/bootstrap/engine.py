"""Sessions and tasks without a server: for ``codegen-mcp run``, tests and the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from codegen_mcp.bootstrap.egress import Network, make_egress
from codegen_mcp.bootstrap.host import Host, open_host
from codegen_mcp.bootstrap.isolation import isolation
from codegen_mcp.bootstrap.store import store_address
from codegen_mcp.core.clock import SystemClock
from codegen_mcp.egress.service import Egress
from codegen_mcp.engine.artifacts.collector import FileCollector
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.keeper import ArtifactKeeper
from codegen_mcp.engine.checkpoints.automatic import AutoSaver
from codegen_mcp.engine.checkpoints.checkpoint_config import CheckpointConfig
from codegen_mcp.engine.checkpoints.checkpointer import Checkpointer
from codegen_mcp.engine.egress_equipment import EgressEquipment
from codegen_mcp.engine.hooks import EngineHooks, NoHooks
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.ports import OpenWorkspace
from codegen_mcp.engine.session_pool import SessionPool
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.slot_factory import SlotFactory
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.engine.task_executor import TaskExecutor
from codegen_mcp.engine.task_ledger import TaskLedger
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.sandbox.base import Enforcement
from codegen_mcp.sandbox.registry import Choice, Tenancy, choose, parse_level
from codegen_mcp.settings import Settings
from codegen_mcp.stores.base import ObjectStore
from codegen_mcp.stores.registry import open_store
from codegen_mcp.tools.registry import tools_by_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Sessions and tasks, ready to be asked."""

    host: Host
    choice: Choice
    egress: Egress
    sessions: SessionPool
    tasks: TaskExecutor
    artifacts: ArtifactKeeper
    checkpoints: Checkpointer
    store: ObjectStore
    """Of checkpoints and artifacts."""


@asynccontextmanager
async def open_engine(
    settings: Settings,
    hooks: EngineHooks | None = None,
    *,
    keep_sessions: bool = True,
    network: Network | None = None,
) -> AsyncIterator[Engine]:
    """Open sessions and tasks; at the end nothing of them runs any more.

    Raises:
        SandboxUnavailable: No backend reaches ``require_isolation``.
    """
    clock, hooks = SystemClock(), hooks or NoHooks()
    async with open_host(settings) as host:
        choice = await choose(
            host.backends,
            name=settings.sandbox,
            required=parse_level(settings.require_isolation),
            tenancy=Tenancy(settings.tenancy),
        )
        host.catalog.has_images = getattr(choice.backend, "carries_images", False)
        egress = await make_egress(settings, choice.backend, network)
        watched = host.volumes.enforcement is not Enforcement.KERNEL

        def open_workspace(slot: Slot) -> OpenWorkspace:
            return SessionWorkspace(
                slot.volume.root / "workspace",
                slot.identity,
                max_file_bytes=slot.limits.file_size_bytes,
                usage=slot.volume.usage if watched else None,
            )

        ledger = TaskLedger(
            clock, TaskConfig(output=OutputConfig(capture_bytes=settings.result_output_bytes))
        )
        sessions = SessionPool(
            config=pool_config(settings, keep_sessions),
            state=host.state,
            factory=SlotFactory(
                backend=choice.backend,
                volumes=host.volumes,
                cgroups=host.detection.driver,
                identities=host.identities,
                catalog=host.catalog,
                hooks=hooks,
                egress=EgressEquipment(egress) if egress.open else None,
            ),
            catalog=host.catalog,
            open_workspace=open_workspace,
            isolation=isolation(choice.probe, egress),
            egress=egress,
            records=ledger,
            hooks=hooks,
            clock=clock,
        )
        installers = {name: language.installer for name, language in host.languages.items()}
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(store_address(settings)))
            kept = artifact_config(settings)
            artifacts = ArtifactKeeper(
                store,
                host.state.root / "uploads",
                find_session=sessions.get,
                room=host.volumes.free_bytes,
                config=kept,
                clock=clock,
            )
            tasks = TaskExecutor(
                sessions,
                tools_by_name(),
                ledger,
                installers=installers,
                artifacts=artifacts,
                collector=FileCollector(artifacts, kept),
                hooks=hooks,
                clock=clock,
            )
            checkpoints = Checkpointer(
                sessions,
                store,
                host.state.root / "drafts",
                CheckpointConfig(
                    keep=settings.max_checkpoints,
                    remote=store.remote,
                    exclusive=not settings.checkpoint_dir,
                ),
                room=host.volumes.free_bytes,
            )
            saver = AutoSaver(sessions, checkpoints, clock)
            for part in (artifacts, sessions, tasks, checkpoints, saver):
                await stack.enter_async_context(part)
            tasks.saver = saver
            yield Engine(
                host=host,
                choice=choice,
                egress=egress,
                sessions=sessions,
                tasks=tasks,
                artifacts=artifacts,
                checkpoints=checkpoints,
                store=store,
            )


def artifact_config(settings: Settings) -> ArtifactConfig:
    """Settings of artifacts."""
    return ArtifactConfig(
        ttl_s=settings.artifact_ttl_s,
        max_bytes=settings.max_artifact_bytes,
        session_bytes=settings.max_session_artifact_bytes,
        total_bytes=settings.artifact_store_bytes,
    )


def pool_config(settings: Settings, keep_sessions: bool) -> SessionPoolConfig:
    """Settings of the session pool."""
    return SessionPoolConfig(
        max_sessions=settings.max_sessions,
        pool_size=settings.pool_size,
        pool_max=max(16, settings.pool_size),
        idle_timeout_s=settings.idle_timeout_s,
        checkpoint_interval_s=settings.checkpoint_interval_s,
        max_age_s=settings.max_age_s,
        grace_s=settings.drain_grace_s,
        waiting_runs=settings.task_queue,
        concurrent_runs=settings.max_concurrent_runs,
        default_limits=settings.limits,
        maximum_limits=settings.maximum_limits,
        keep_sessions=keep_sessions,
    )
