"""The image that container sandboxes are tested with, built without any registry.

From a Debian root (mmdebstrap) by buildah; minutes, so it is kept under its name, and made only
where a test asks for it and the tools are there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NAME = "localhost/codegen-test:latest"
_SEARCH = "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"
_TIMEOUT_S = 900
_COMMIT = """
set -e
container=$(buildah from scratch)
buildah add --quiet "$container" "$1" /
buildah config --env PATH=/usr/local/bin:/usr/bin:/bin "$container"
buildah commit --quiet --rm "$container" "$2"
"""


def image_name() -> str:
    """Return the image to test with, whether or not it is there: CODEGEN_TEST_IMAGE, or ours."""
    return os.environ.get("CODEGEN_TEST_IMAGE") or NAME


def build_image() -> str:
    """Build it where it is missing; returns why that cannot be done, or nothing.

    It has the interpreter of the host's own release, because a session's must be at the same path.
    """
    if image_name() != NAME:
        return ""
    missing = [one for one in ("buildah", "mmdebstrap") if not shutil.which(one, path=_SEARCH)]
    if missing or os.geteuid() != 0:
        return f"to build the image: root, and apt-get install {' '.join(missing) or 'buildah'}"
    if _run("buildah", "inspect", "--type", "image", NAME).returncode == 0:
        return ""
    with tempfile.TemporaryDirectory(prefix="codegen-image-", dir="/var/tmp") as directory:
        root = Path(directory) / "root.tar"
        packages = "--include=python3,python3-venv,ca-certificates"
        for argv in (
            ["mmdebstrap", "--variant=minbase", packages, _release(), str(root)],
            ["/bin/sh", "-c", _COMMIT, "sh", str(root), NAME],
        ):
            done = _run(*argv)
            if done.returncode != 0:
                return f"{argv[0]}: {done.stderr.strip()[-300:]}"
    return ""


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return "stable"


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": _SEARCH}
    return subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
