"""Which backends there are, and which one a worker uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from codegen_mcp.core.errors import InvalidRequest, SandboxUnavailable
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import IsolationLevel, Probe, SandboxBackend
from codegen_mcp.sandbox.bubblewrap import BubblewrapBackend, NoProcBubblewrapBackend
from codegen_mcp.sandbox.container import ContainerBackend
from codegen_mcp.sandbox.gvisor import GvisorBackend
from codegen_mcp.sandbox.process import BareProcessBackend, ProcessBackend

Factory = Callable[[BackendConfig], SandboxBackend]

BACKENDS: Mapping[str, Factory] = {
    "gvisor": GvisorBackend,
    "container": ContainerBackend,
    "bubblewrap": BubblewrapBackend,
    "bubblewrap-noproc": NoProcBubblewrapBackend,
    "process-hardened": ProcessBackend,
    "process-bare": BareProcessBackend,
}
"""Strongest first."""
AUTO = "auto"
_ALIASES = {"process": "process-hardened"}
_ASKED_FOR = frozenset({"gvisor", "container"})
"""Stronger than the default and slower: used when named, or where tenants are hostile."""
_NEVER_AUTOMATIC = frozenset({"bubblewrap-noproc", "process-bare"})
"""``bubblewrap-noproc`` is what ``bubblewrap`` turns into by itself where it must."""
_STRENGTH = tuple(IsolationLevel)
_SHARED_HOST = (IsolationLevel.PROCESS_HARDENED, IsolationLevel.PROCESS_BARE)
"""Never for tenants that are hostile to each other, whatever is required."""


class Tenancy(StrEnum):
    """Who shares a worker."""

    TRUSTED = "trusted"
    """One owner's code, or that of people who trust each other: the fastest safe backend."""
    HOSTILE = "hostile"
    """Strangers: the strongest backend that works."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The backend to use, and everything that was found on the way."""

    backend: SandboxBackend
    probe: Probe
    rejected: Sequence[Probe]
    """Stronger ones that cannot be had, with reason and fix."""


def create(name: str, config: BackendConfig) -> SandboxBackend:
    """Make a backend by name.

    Raises:
        InvalidRequest: There is none of that name.
        SandboxUnavailable: The operator's consent is missing.
    """
    name = _ALIASES.get(name, name)
    if name not in BACKENDS:
        known = ", ".join((AUTO, *BACKENDS))
        raise InvalidRequest(f"sandbox {name!r} is not known; use one of {known}")
    return BACKENDS[name](config)


def parse_level(text: str) -> IsolationLevel:
    """Read a level's name.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        return IsolationLevel(text)
    except ValueError:
        known = ", ".join(level.value for level in IsolationLevel)
        raise InvalidRequest(
            f"require_isolation {text!r} is not a level; use one of {known}"
        ) from None


def is_at_least(level: IsolationLevel, required: IsolationLevel) -> bool:
    """Whether a level is as strong as another, or stronger."""
    return _STRENGTH.index(level) <= _STRENGTH.index(required)


async def probe_all(config: BackendConfig) -> Sequence[Probe]:
    """Probe every backend that may be chosen, strongest first."""
    return [
        await factory(config).probe()
        for name, factory in BACKENDS.items()
        if name not in _NEVER_AUTOMATIC
    ]


async def choose(
    config: BackendConfig,
    *,
    name: str = AUTO,
    required: IsolationLevel = IsolationLevel.BUBBLEWRAP,
    tenancy: Tenancy = Tenancy.TRUSTED,
) -> Choice:
    """Return the named backend, or the first of the ladder that works; nothing below ``required``.

    The ladder begins at bubblewrap; where more is required, or tenants are hostile, at gVisor.
    Naming ``process-bare`` and requiring no more than it is the operator's consent to it.

    Raises:
        InvalidRequest: There is no backend of that name.
        SandboxUnavailable: None can be had that is strong enough; says why, how to get one, and
            which flag accepts less.
    """
    bare = IsolationLevel.PROCESS_BARE
    if required is bare and name == bare.value:
        config = dataclasses.replace(config, allow_bare=True)
    if tenancy is Tenancy.HOSTILE and required in _SHARED_HOST:
        raise InvalidRequest(
            f"tenancy 'hostile' does not go with require_isolation {required.value!r}: there, code "
            "of all tenants shares the host's file names and processes; require "
            f"{IsolationLevel.BUBBLEWRAP_NOPROC.value!r} or more, or say --tenancy trusted"
        )
    names = ladder(required, tenancy) if name == AUTO else [name]
    rejected: list[Probe] = []
    for candidate in names:
        backend = create(candidate, config)
        probe = await backend.probe()
        if probe.available and is_at_least(probe.level, required):
            return Choice(backend=backend, probe=probe, rejected=rejected)
        rejected.append(probe)
    raise SandboxUnavailable(_refusal(rejected, required))


def ladder(required: IsolationLevel, tenancy: Tenancy) -> Sequence[str]:
    """Names of the backends that are tried, in this order."""
    strongest = tenancy is Tenancy.HOSTILE or not is_at_least(IsolationLevel.BUBBLEWRAP, required)
    return [
        name
        for name in BACKENDS
        if name not in _NEVER_AUTOMATIC and (strongest or name not in _ASKED_FOR)
    ]


def _refusal(rejected: Sequence[Probe], required: IsolationLevel) -> str:
    parts = [f"no sandbox of level {required.value!r} or stronger works here"]
    for probe in rejected:
        if probe.available:
            parts.append(
                f"{probe.level.value} works but is weaker; to accept it: "
                f"--require-isolation {probe.level.value}"
            )
        else:
            fix = f" (to get it: {probe.fix})" if probe.fix else ""
            parts.append(f"{probe.name}: {probe.reason}{fix}")
    return "; ".join(parts)
