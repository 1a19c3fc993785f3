"""What the pages on hosts and isolation name is there: commands, flags, settings, files, keys."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from codegen_mcp.cli.main import COMMANDS, build
from codegen_mcp.sandbox import fixes
from codegen_mcp.sandbox.base import IsolationLevel
from codegen_mcp.sandbox.place import Kind, Place
from codegen_mcp.settings import Settings

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "docs/hosts.md",
    ROOT / "docs/concepts/threat-model.md",
    ROOT / "docs/concepts/sandbox.md",
    ROOT / "SECURITY.md",
]
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
OTHERS = {
    "CONTAINER_HOST",
    "DOCKER_HOST",
    "RUNSC_PATH",
    "DRAIN_GRACE_S",
    "RLIMIT_NPROC",
    "RLIMIT_AS",
}
"""Variables that are not settings."""


def options(command: str) -> set[str]:
    group = build()
    found = group.get_command(click.Context(group), command)
    assert found is not None, command
    return {name for parameter in found.params for name in parameter.opts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"codegen-mcp ([a-z]+[^`\n#;|)]*)", text):
        name, *rest = line.split()
        if name not in COMMANDS:
            raise AssertionError(f"no such command: {line}")
        for flag in (word for word in rest if word.startswith("--")):
            assert flag.partition("=")[0] in options(name), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_files_and_links_exist(page: Path) -> None:
    text = page.read_text()
    settings = {name.upper() for name in Settings.model_fields} | OTHERS | {"SANDBOX"}
    for name in re.findall(r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)[`=]", text):
        assert name in settings, name
    for path in re.findall(r"deploy/[\w/.-]*\w", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link


def test_every_file_that_a_remedy_names_is_shipped() -> None:
    places = [
        Place(kind=kind, family="debian", systemd=systemd)
        for kind in Kind
        for systemd in (True, False)
    ]
    reasons = ["Can't mount proc", "Creating new namespace failed", "No space left on device"]
    for place in places:
        said = [fixes.fix_for(reason, Path("/nonexistent"), place) for reason in reasons]
        said += [fixes.apparmor(place), fixes.control_groups(place)]
        for fix in said:
            assert fix
            for path in re.findall(r"(?:deploy|docs)/[\w/.-]*\w", fix):
                assert (ROOT / path).exists(), fix


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_start_a_worker_with_flags_that_exist(manifest: Path) -> None:
    text = manifest.read_text()
    assert "\t" not in text
    for arguments in re.findall(r"args: \[(.*)\]", text):
        name, *rest = [word.strip().strip('"') for word in arguments.split(",")]
        flags = [word for word in rest if word.startswith("--")]
        assert set(flags) <= options(name)
        level = rest[rest.index("--require-isolation") + 1]
        assert level in set(IsolationLevel)
        assert "hostUsers: false" in text or "procMount: Unmasked" not in text


def test_the_seccomp_profile_allows_sandboxes_and_not_what_breaks_out_of_them() -> None:
    profile = json.loads((ROOT / "deploy/seccomp/codegen-mcp.json").read_text())
    allowed = {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW"
        for name in rule["names"]
    }
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {"clone", "unshare", "mount", "umount2", "pivot_root", "setns"} <= allowed
    assert {"landlock_restrict_self", "seccomp", "openat2", "pidfd_open", "execve"} <= allowed
    assert not allowed & {
        *("bpf", "perf_event_open", "keyctl", "add_key", "userfaultfd", "io_uring_setup"),
        *("init_module", "kexec_load", "open_by_handle_at", "move_mount", "fsopen", "clone3"),
    }


def test_the_unit_is_sound_and_delegates(tmp_path: Path) -> None:
    text = (ROOT / "deploy/codegen-mcp.service").read_text()
    assert "Delegate=yes" in text
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "codegen-mcp.service"
    unit.write_text(text.replace("/opt/codegen-mcp/bin/codegen-mcp", "/bin/true"))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
