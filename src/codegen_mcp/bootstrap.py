"""All wiring on one page: settings in, a running worker out.

``open_engine`` makes sessions and tasks without a server (``codegen-mcp run``, tests);
``open_worker`` adds gRPC, HTTP and metrics; ``serve`` adds signals and words for people.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

import codegen_mcp.sandbox.guest
from codegen_mcp.core.clock import SystemClock
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.engine.hooks import EngineHooks, NoHooks
from codegen_mcp.engine.interpreter_catalog import InterpreterCatalog
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.ports import IdentityLeaser, OpenWorkspace
from codegen_mcp.engine.session_pool import SessionPool
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.slot_factory import SlotFactory
from codegen_mcp.engine.state_directory import StateDirectory
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.engine.task_executor import TaskExecutor
from codegen_mcp.engine.task_ledger import TaskLedger
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.http.app import make_app
from codegen_mcp.http.server import HttpServer
from codegen_mcp.languages.base import Language
from codegen_mcp.languages.python.guest_install import install_guest
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.languages.registry import make_languages
from codegen_mcp.sandbox import cgroup_detect, mounts
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import Enforcement, HostIdentity, Probe
from codegen_mcp.sandbox.bubblewrap import find_bubblewrap
from codegen_mcp.sandbox.host_reaper import reap
from codegen_mcp.sandbox.identity import OwnUser, UidLeases, UidRange
from codegen_mcp.sandbox.registry import Choice, choose, parse_level
from codegen_mcp.sandbox.remedies import show_bytes
from codegen_mcp.sandbox.report import describe
from codegen_mcp.sandbox.state_lock import worker_token
from codegen_mcp.sandbox.volumes import registry as volume_registry
from codegen_mcp.sandbox.volumes.registry import VolumeProbe, Volumes
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.sandbox.watchdog import watchdog
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.server.signals import ShutdownSignals
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.logs import configure_logging
from codegen_mcp.telemetry.metrics import CONTENT_TYPE, WorkerMetrics
from codegen_mcp.tools.registry import tools_by_name
from codegen_mcp.version import __version__

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this machine gives: found once, at start."""

    state: StateDirectory
    detection: cgroup_detect.Detection
    identities: IdentityLeaser
    volumes: Volumes
    volume_probes: Sequence[VolumeProbe]
    languages: Mapping[str, Language]
    catalog: InterpreterCatalog
    backends: BackendConfig
    """What every backend is made with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Sessions and tasks, ready to be asked."""

    host: Host
    choice: Choice
    sessions: SessionPool
    tasks: TaskExecutor


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A serving worker."""

    engine: Engine
    server: WorkerServer
    metrics: WorkerMetrics
    http: HttpServer | None

    @property
    def address(self) -> str:
        """``host:port`` that clients use."""
        return f"127.0.0.1:{self.server.port}"


def check_reach(settings: Settings) -> None:
    """Refuse to listen beyond this machine unless that was said aloud.

    Raises:
        InvalidRequest: The address is not loopback and ``insecure_no_auth`` is not set.
    """
    if not settings.is_loopback and not settings.insecure_no_auth:
        raise InvalidRequest(
            f"host {settings.host!r} can be reached from other machines, and callers are not "
            "authenticated: whoever reaches it runs code. Bind 127.0.0.1, put an authenticating "
            "proxy before it, or accept the risk with --insecure-no-auth"
        )


@asynccontextmanager
async def open_host(settings: Settings) -> AsyncIterator[Host]:
    """Lock the state directory, clear what a dead worker left, find what there is.

    Raises:
        Unavailable: The state directory is in use, or a required part cannot be had.
    """
    root = os.geteuid() == 0
    state = StateDirectory(settings.base_workspace)
    async with AsyncExitStack() as stack:
        stack.enter_context(state.opened())
        stack.enter_context(watchdog())
        token = worker_token(state.root)
        detection = cgroup_detect.detect(token, memory_reserve_bytes=settings.memory_reserve_bytes)
        if detection.driver is not None:
            stack.callback(detection.driver.close)
        identities: IdentityLeaser = OwnUser()
        uids: frozenset[int] = frozenset()
        if root:
            leases = UidLeases(UidRange.parse(settings.uid_range), token)
            stack.callback(leases.close)
            uids, identities = leases.reclaim(), leases
        reaped = await asyncio.to_thread(reap, state.root, cgroups=detection.driver, uids=uids)
        if reaped.found_any:
            log.warning(
                "host.reaped",
                processes=reaped.processes,
                cgroups=len(reaped.cgroups),
                mounts=len(reaped.mounts),
                left=reaped.left,
            )
        volume_config = VolumeConfig(
            state_directory=state.root,
            reserve_bytes=settings.disk_reserve_bytes,
            overcommit=settings.disk_overcommit,
        )
        volumes, volume_probes = await volume_registry.choose(settings.volume, volume_config)
        trial = identities.lease()
        fetcher = identities.lease()
        languages = make_languages(
            state.root,
            packages=package_config(settings, fetcher),
            interpreters=interpreter_paths(settings),
            identity=trial,
        )
        catalog = await discover(languages, settings, stack)
        guest = await asyncio.to_thread(
            install_guest,
            Path(codegen_mcp.sandbox.guest.__file__).parent,
            state.root,
            catalog.interpreters,
        )
        yield Host(
            state=state,
            detection=detection,
            identities=identities,
            volumes=volumes,
            volume_probes=volume_probes,
            languages=languages,
            catalog=catalog,
            backends=BackendConfig(
                guest_directory=guest,
                state=state.root,
                interpreter=catalog.default,
                identity=trial,
                neighbour=fetcher,
                cgroups=detection.driver,
                volumes=volumes,
            ),
        )


async def discover(
    languages: Mapping[str, Language], settings: Settings, stack: AsyncExitStack
) -> InterpreterCatalog:
    """Find every language's interpreters."""
    found: list[tuple[Language, list[Interpreter]]] = []
    for language in languages.values():
        stack.callback(language.close)
        found.append((language, list(await language.discover())))
    default = "" if settings.language in languages else settings.language
    return InterpreterCatalog(found, default)


def isolation(probe: Probe) -> dict[str, str]:
    """Wall name to who enforces it, and ``sandbox`` to the level."""
    return {
        "sandbox": str(probe.level),
        **{name: str(who) for name, who in probe.enforces.items()},
    }


def start_up_lines(settings: Settings, engine: Engine) -> list[str]:
    """Say who enforces what, how much, and what nobody does."""
    choice, volumes, detection = engine.choice, engine.host.volumes, engine.host.detection
    groups = f"cgroup-v{detection.driver.version}" if detection.driver else "no cgroup"
    lines = describe(
        choice.probe,
        details={
            "memory": f"{groups} {show_bytes(settings.memory_bytes)}",
            "pids": f"{settings.pids}",
            "cpu": f"{settings.cpu_millicores / 1000:g}",
            "disk": f"{volumes.name} {show_bytes(settings.disk_bytes)}",
        },
        facts={"uids": settings.uid_range} if os.geteuid() == 0 else {},
        rejected=choice.rejected,
    )
    if detection.refused:
        lacking = ", ".join(f"{name} ({why})" for name, why in detection.refused.items())
        lines.append(f"sandbox: WARNING no cgroup for {lacking}; to get it: {detection.fix}")
    if volumes.warning:
        lines.append(f"sandbox: WARNING {volumes.warning}")
    if not settings.is_loopback:
        lines.append(f"WARNING anybody who reaches {settings.host} may run code: no authentication")
    return lines


def package_config(settings: Settings, fetcher: HostIdentity | None) -> PackageConfig:
    """Settings of package installs."""
    try:
        bubblewrap = Path(find_bubblewrap())
    except Exception:
        bubblewrap = None
    return PackageConfig.below(
        settings.base_workspace,
        index_urls=tuple(settings.package_index_urls.split()),
        offline=settings.package_index_offline,
        max_bytes=settings.wheelhouse_bytes,
        fetch_identity=fetcher,
        bubblewrap=bubblewrap,
    )


def interpreter_paths(settings: Settings) -> list[Path]:
    """The operator's own interpreters."""
    return [Path(path) for path in settings.python_interpreters.split(":") if path]


@asynccontextmanager
async def open_engine(
    settings: Settings, hooks: EngineHooks | None = None, *, keep_sessions: bool = True
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
        )
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
            ),
            catalog=host.catalog,
            open_workspace=open_workspace,
            isolation=isolation(choice.probe),
            records=ledger,
            hooks=hooks,
            clock=clock,
        )
        installers = {name: language.installer for name, language in host.languages.items()}
        tasks = TaskExecutor(
            sessions, tools_by_name(), ledger, installers=installers, hooks=hooks, clock=clock
        )
        async with sessions, tasks:
            yield Engine(host=host, choice=choice, sessions=sessions, tasks=tasks)


def pool_config(settings: Settings, keep_sessions: bool) -> SessionPoolConfig:
    """Settings of the session pool."""
    return SessionPoolConfig(
        max_sessions=settings.max_sessions,
        pool_size=settings.pool_size,
        pool_max=max(16, settings.pool_size),
        idle_timeout_s=settings.idle_timeout_s,
        max_age_s=settings.max_age_s,
        grace_s=settings.drain_grace_s,
        waiting_runs=settings.task_queue,
        concurrent_runs=settings.max_concurrent_runs,
        default_limits=settings.limits,
        maximum_limits=settings.maximum_limits,
        keep_sessions=keep_sessions,
    )


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[Worker]:
    """Open a serving worker; leaving the block ends its calls at once."""
    check_reach(settings)
    metrics = WorkerMetrics(worker_id=settings.worker_id, version=__version__)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(settings, metrics))
        metrics.watch(engine.sessions)
        server = WorkerServer(
            engine.sessions,
            engine.tasks,
            ServerConfig(
                worker_id=settings.worker_id,
                host=settings.host,
                port=settings.grpc_port,
                facts=isolation(engine.choice.probe),
            ),
            metrics,
        )
        await stack.enter_async_context(server)
        http = None
        if settings.metrics_port:
            app = make_app(
                metrics=metrics.render, metrics_type=CONTENT_TYPE, ready=lambda: server.serving
            )
            http = HttpServer(app, host=settings.host, port=settings.metrics_port)
            await stack.enter_async_context(http)
        yield Worker(engine=engine, server=server, metrics=metrics, http=http)


async def serve(settings: Settings, announce: Callable[[str], object]) -> int:
    """Serve until told to stop; returns the exit code.

    The first signal drains: readiness fails, new work is refused, what runs may finish within
    ``drain_grace_s``. The second ends at once.
    """
    configure_logging(settings.log_level)
    if settings.private_mounts and os.geteuid() == 0:
        mounts.enter_private_namespace()
    async with ShutdownSignals() as signals, open_worker(settings) as worker:
        for line in start_up_lines(settings, worker.engine):
            announce(line)
        announce(f"worker {settings.worker_id} listening on {settings.host}:{worker.server.port}")
        for line in what_next(settings, worker.server.port):
            announce(line)
        await signals.drain.wait()
        announce("draining: no new work; a second signal ends at once")
        await worker.server.drain()
        exiting = asyncio.ensure_future(signals.exit.wait())
        quiet = asyncio.ensure_future(worker.engine.sessions.drain())
        try:
            await asyncio.wait([exiting, quiet], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in (exiting, quiet):
                future.cancel()
            await asyncio.gather(exiting, quiet, return_exceptions=True)
        await worker.engine.tasks.stop()  # whoever follows a task is told its end
        await worker.server.stop(0 if signals.exit.is_set() else 1)
    return 0


def what_next(settings: Settings, port: int) -> list[str]:
    """Return lines to paste, for somebody who sees this for the first time."""
    python = Path(os.environ.get("VIRTUAL_ENV", "")) / "bin" / "python"
    program = python if python.is_file() else Path("python")
    return [
        "try it from another terminal:",
        f'  CODEGEN_MCP_ADDRESS=127.0.0.1:{port} {program} -c "from codegen_mcp.client import '
        "Sandbox; s = Sandbox.create(); print(s.run_python('print(6 * 7)').stdout, end=''); "
        's.kill()"',
    ]
