"""What this machine gives, found once at start: groups, users, volumes, interpreters."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

import codegen_mcp.sandbox.guest
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.engine.interpreter_catalog import InterpreterCatalog
from codegen_mcp.engine.ports import IdentityLeaser
from codegen_mcp.engine.state_directory import StateDirectory
from codegen_mcp.languages.base import Language
from codegen_mcp.languages.python.guest_install import install_guest
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.languages.registry import make_languages
from codegen_mcp.sandbox import cgroup_detect
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.bubblewrap import find_bubblewrap
from codegen_mcp.sandbox.host_reaper import reap
from codegen_mcp.sandbox.identity import OwnUser, UidLeases, UidRange
from codegen_mcp.sandbox.project_quota import give_up_exemption
from codegen_mcp.sandbox.state_lock import worker_token
from codegen_mcp.sandbox.volumes import registry as volume_registry
from codegen_mcp.sandbox.volumes.registry import VolumeProbe, Volumes
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.sandbox.watchdog import watchdog
from codegen_mcp.settings import Settings

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


@asynccontextmanager
async def open_host(settings: Settings) -> AsyncIterator[Host]:
    """Lock the state directory, clear what a dead worker left, find what there is.

    Raises:
        Unavailable: The state directory is in use, or a required part cannot be had.
    """
    root = os.geteuid() == 0
    if root:
        give_up_exemption()
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
        trial = identities.lease(own=True)
        fetcher = identities.lease(own=True)
        guests = identities.lease(own=True)
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
                guest_identity=guests,
                cgroups=detection.driver,
                volumes=volumes,
                container_image=settings.container_image,
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
