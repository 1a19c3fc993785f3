"""Ground on which sandboxes are tested: a state directory, an interpreter, the guest, users.

Prepared once, by root where the tests are root. What an ordinary user needs of it can be handed
to a process of that user as JSON (``sandbox_child.py``).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.cgroup_detect import detect
from codegen_mcp.sandbox.volumes.registry import Volumes
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.testing.container_image import image_name

BASE = Path("/var/tmp")
"""Other users can pass through it, unlike the directories that pytest makes."""
_UIDS = "236032-247807"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What backends are made from."""

    state: Path
    guest: Path
    interpreter: Interpreter
    identities: Sequence[HostIdentity] = ()
    """Empty where the tests are not root."""
    guest_identity: HostIdentity | None = None
    """What guests run as."""

    def to_json(self, state: Path) -> str:
        """Write it down for a process without identities of its own, on another state directory."""
        facts = dataclasses.asdict(self.interpreter)
        return json.dumps({"state": state, "guest": self.guest, "interpreter": facts}, default=str)

    @classmethod
    def from_json(cls, text: str) -> Ground:
        """Read what ``to_json`` wrote."""
        facts = json.loads(text)
        interpreter = facts["interpreter"]
        interpreter["executable"] = Path(interpreter["executable"])
        interpreter["template"] = Path(interpreter["template"])
        interpreter["trees"] = tuple(map(Path, interpreter["trees"]))
        interpreter["sources"] = tuple((Path(a), Path(b)) for a, b in interpreter["sources"])
        return cls(
            state=Path(facts["state"]),
            guest=Path(facts["guest"]),
            interpreter=Interpreter(**interpreter),
        )

    @contextmanager
    def config(self, *, volume: str = "") -> Iterator[BackendConfig]:
        """Yield a worker's facts, with the control groups that can be had.

        Args:
            volume: Kind of volume; empty is none, a plain directory without a limit.
        """
        driver = detect(f"test-{os.getpid()}").driver
        volumes = VolumeConfig(state_directory=self.state, reserve_bytes=0)
        first, second = [*self.identities, None, None][:2]
        try:
            yield BackendConfig(
                guest_directory=self.guest,
                state=self.state,
                interpreter=self.interpreter,
                identity=first,
                neighbour=second,
                guest_identity=self.guest_identity,
                cgroups=driver,
                volumes=Volumes(volume, volumes) if volume else None,
                container_image=image_name(),
            )
        finally:
            if driver is not None:
                driver.remove_stale()
                driver.close()


@contextmanager
def prepared_ground() -> Iterator[Ground]:
    """Discover an interpreter and install the guest in a new state directory; remove it after."""
    import codegen_mcp.sandbox.guest
    from codegen_mcp.languages.python.guest_install import install_guest
    from codegen_mcp.languages.python.interpreters import InterpreterDiscovery
    from codegen_mcp.sandbox.identity import UidLeases, UidRange

    with ExitStack() as stack:
        state = stack.enter_context(open_directory())
        identities: list[HostIdentity] = []
        guests: HostIdentity | None = None
        if os.geteuid() == 0:
            leases = UidLeases(UidRange.parse(_UIDS), f"test-{os.getpid()}")
            stack.callback(leases.close)
            identities = [leases.lease() for _ in range(4)]
            guests = leases.lease()
        discovery = InterpreterDiscovery(state, identity=identities[0] if identities else None)
        stack.callback(discovery.close)
        interpreter = discovery.discover_now()[0]
        source = Path(codegen_mcp.sandbox.guest.__file__).parent
        guest = install_guest(source, state, [interpreter])
        yield Ground(
            state=state,
            guest=guest,
            interpreter=interpreter,
            identities=identities,
            guest_identity=guests,
        )


@contextmanager
def open_directory(owner: int = 0) -> Iterator[Path]:
    """Yield a new directory that others can pass through; removed after."""
    directory = Path(tempfile.mkdtemp(prefix="codegen-test-", dir=BASE))
    try:
        os.chmod(directory, 0o711)
        if owner:
            os.chown(directory, owner, owner)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
