"""What to do about each thing that a host does not give, in words that fit where the worker runs.

The start-up line, ``doctor``, GetCapacity and the status of a session all take their remedies from
here, so that they never differ. The files that are named are in the repository's ``deploy``.
"""

from __future__ import annotations

from pathlib import Path

from codegen_mcp.sandbox.place import Kind, Place, find_place

DOCS = "docs/hosts.md"
APPARMOR_SWITCH = "kernel/apparmor_restrict_unprivileged_userns"
_SYSCTLS = (
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
)
_MORE_NAMESPACES = "user.max_user_namespaces=15000"
_UNMASKED = "procMount: Unmasked in the securityContext, with hostUsers: false in the spec"
_PROFILE = "a seccomp profile that allows clone, unshare, mount, umount2 and pivot_root"
_DOCKER = (
    f"{_PROFILE}: docker run --security-opt seccomp=deploy/seccomp/codegen-mcp.json "
    "--security-opt systempaths=unconfined"
)
_POD = (
    f"in a pod: hostUsers: false, procMount: Unmasked and {_PROFILE} "
    f"(deploy/kubernetes/bubblewrap.yaml), see {DOCS}"
)
_REFUSED = ("namespace", "uid map", "RTM_NEWADDR", "EPERM at unshare")
"""Words of bubblewrap and runsc where the kernel refuses a user namespace."""


def fix_for(
    reason: str, sysctls: Path = Path("/proc/sys"), place: Place | None = None, status: str = ""
) -> str:
    """Return what to do about a reason; empty when nothing is known.

    Args:
        reason: What a program or the kernel said.
        sysctls: ``/proc/sys``.
        place: Where the worker runs; None looks.
        status: ``/proc/self/status``; empty reads it.
    """
    place = place or find_place()
    if "mount proc" in reason:
        return _masked_proc(place)
    if "max_*_namespaces" in reason or "No space left" in reason:
        return _sysctl(_MORE_NAMESPACES, place)
    if any(words in reason for words in _REFUSED):
        return user_namespaces(place, sysctls, status)
    for words, fix in _simple(place).items():
        if words in reason:
            return fix
    return ""


def user_namespaces(place: Place, sysctls: Path = Path("/proc/sys"), status: str = "") -> str:
    """Return how to get user namespaces, after the first thing that is found to refuse them."""
    if _read(sysctls / APPARMOR_SWITCH) == "1":
        return apparmor(place)
    for name, value, setting in _SYSCTLS:
        if _read(sysctls / name) == value:
            return _sysctl(setting, place)
    if place.kind is Kind.POD:
        return _POD
    status = status or _read(Path("/proc/self/status"))
    if place.systemd and "Seccomp:\t2" in status:
        return (
            "a seccomp filter around the worker refuses user namespaces: in its systemd unit set "
            "RestrictNamespaces=no and no SystemCallFilter without @mount "
            "(deploy/codegen-mcp.service)"
        )
    if place.kind is Kind.CONTAINER or "Seccomp:\t2" in status:
        return f"{_DOCKER}; {_POD}"
    return f"allow user namespaces to the worker's user, see {DOCS}; {_POD}"


def apparmor(place: Place) -> str:
    """Return how to let bubblewrap make user namespaces where AppArmor restricts them."""
    where = "" if place.kind is Kind.HOST else "on the node: "
    return (
        f"AppArmor keeps unprivileged programs from making user namespaces: {where}install -m 644 "
        "deploy/apparmor/codegen-mcp-bwrap /etc/apparmor.d/ && apparmor_parser -r "
        "/etc/apparmor.d/codegen-mcp-bwrap; where others use the machine too, the profile "
        "bwrap-userns-restrict of package apparmor-profiles instead"
    )


def control_groups(place: Place) -> str:
    """Return how to get control groups of one's own."""
    if place.kind is Kind.POD:
        return (
            "a pod's control groups are read-only: its resources.limits bound all sessions "
            "together; for limits by the kernel for each session run the worker on a virtual "
            f"machine, see {DOCS}"
        )
    if place.kind is Kind.CONTAINER:
        return (
            "start the container with control groups of its own that it may write: podman run "
            "--systemd=always, or docker run --privileged --cgroupns=private in a virtual machine "
            f"that has nothing else, see {DOCS}"
        )
    if place.systemd:
        return (
            "give the worker a group of its own: Delegate=yes in its systemd unit "
            "(deploy/codegen-mcp.service), or systemd-run --user --scope -p Delegate=yes "
            "codegen-mcp worker"
        )
    return (
        "give the worker a group of its own: make one below /sys/fs/cgroup, chown it to the "
        "worker's user, and start the worker inside (with systemd: Delegate=yes in its unit)"
    )


def _masked_proc(place: Place) -> str:
    docker = (
        "docker run --security-opt systempaths=unconfined, or podman run --security-opt unmask=ALL"
    )
    if place.kind is Kind.POD:
        return f"unmask /proc: {_UNMASKED} (deploy/kubernetes/bubblewrap.yaml)"
    if place.systemd:
        return (
            "something is mounted below /proc, so the kernel lets no user namespace have one of "
            "its own: in the systemd unit set ProtectKernelTunables=no, ProtectKernelLogs=no and "
            f"ProcSubset=all (deploy/codegen-mcp.service); in a container: {docker}"
        )
    return f"unmask /proc: {docker}; in a pod: {_UNMASKED}"


def _sysctl(setting: str, place: Place) -> str:
    kept = f"sysctl -w {setting} (to keep it: a file in /etc/sysctl.d)"
    return kept if place.kind is Kind.HOST else f"on the node: {kept}"


def _simple(place: Place) -> dict[str, str]:
    """Words of a reason to its remedy; the first that are found count."""
    return {
        "runsc is not installed": (
            "install gVisor's runsc into /usr/local/bin, see "
            "https://gvisor.dev/docs/user_guide/install/; or set RUNSC_PATH"
        ),
        "podman is not installed": f"{place.install('podman')}, or start Docker",
        "no image is named": "set CONTAINER_IMAGE to one that `podman images` lists",
        "o such image": "pull it first: sessions never do",
        "bwrap is not installed": place.install("bubblewrap"),
        "Unknown option": "install bubblewrap 0.8 or later",
        "set-user-ID": "take the bit away: chmod u-s, as the reason says",
        "has no Landlock": "boot with lsm=landlock,... on Linux 5.13 or later",
    }


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
