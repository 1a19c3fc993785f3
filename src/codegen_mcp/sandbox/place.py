"""Where the worker runs: which distribution, on a host, in a container or in a Kubernetes pod.

A remedy is only one if it can be typed where the reader is. Sources: os-release(5), the Kubernetes
documentation ("Accessing the API from a Pod"), systemd's container interface (container_env),
``/.dockerenv`` and ``/run/.containerenv`` as Docker and Podman write them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """What encloses the worker."""

    HOST = "host"
    """A machine or virtual machine of its own."""
    CONTAINER = "container"
    POD = "pod"


_INSTALL = {
    "debian": "apt-get install",
    "ubuntu": "apt-get install",
    "fedora": "dnf install",
    "rhel": "dnf install",
    "centos": "dnf install",
    "alpine": "apk add",
    "arch": "pacman -S",
    "suse": "zypper install",
    "opensuse": "zypper install",
}
"""ID or ID_LIKE of os-release to how its packages are installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the worker runs."""

    kind: Kind
    family: str = ""
    """The first of os-release's ID and ID_LIKE that is known here; empty for any other."""
    title: str = ""
    """PRETTY_NAME of os-release."""
    systemd: bool = False
    """Whether systemd is the init of this place."""

    @property
    def summary(self) -> str:
        """For people: ``Debian GNU/Linux 12 (bookworm), container``."""
        return f"{self.title or 'unknown Linux'}, {self.kind.value}"

    def install(self, package: str) -> str:
        """Return what to type, or to write into the image, for a package of the distribution."""
        manager = _INSTALL.get(self.family)
        if manager is None:
            return f"install {package} with this distribution's package manager"
        if self.kind is Kind.HOST:
            return f"{manager} {package}"
        return f"{manager} {package}, in the worker's image"


def find_place(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Place:
    """Find out from files and variables alone; never raises.

    Args:
        root: Of the file system that is looked at.
        environ: The worker's variables; None: those of this process.
    """
    environ = os.environ if environ is None else environ
    release = _os_release(root)
    ids = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    names = [one.partition("-")[0] for one in ids]
    return Place(
        kind=_kind(root, environ),
        family=next((one for one in names if one in _INSTALL), ""),
        title=release.get("PRETTY_NAME", ""),
        systemd=(root / "run/systemd/system").is_dir(),
    )


def _kind(root: Path, environ: Mapping[str, str]) -> Kind:
    account = root / "var/run/secrets/kubernetes.io"
    if environ.get("KUBERNETES_SERVICE_HOST") or account.is_dir():
        return Kind.POD
    marks = (root / ".dockerenv", root / "run/.containerenv", root / "run/systemd/container")
    if environ.get("container") or any(mark.exists() for mark in marks):
        return Kind.CONTAINER
    return Kind.HOST


def _os_release(root: Path) -> dict[str, str]:
    for name in ("etc/os-release", "usr/lib/os-release"):
        try:
            lines = (root / name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        found = {}
        for line in lines:
            key, equals, value = line.partition("=")
            if equals and not key.startswith("#"):
                try:
                    found[key.strip()] = " ".join(shlex.split(value))
                except ValueError:
                    continue
        return found
    return {}
