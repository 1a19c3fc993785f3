"""Gets a package's source distribution from the index that pip uses here."""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

UV = [sys.executable, "-m", "uv", "--quiet"]


def index_environment() -> dict[str, str]:
    """Return an environment in which uv asks the index that pip is configured for, if any."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\S+\.index-url='(.+)'$", settings, re.MULTILINE)
    return {**os.environ, "UV_DEFAULT_INDEX": found[-1]} if found else dict(os.environ)


def download_sdist(pinned: str, folder: Path) -> Path:
    """Download the source distribution of ``name==version``, checked against the index's hash.

    No code of the package runs for it: the address is taken from a lock file.
    """
    lock = subprocess.run(
        [*UV, "pip", "compile", "-", "--no-deps", "--format", "pylock.toml"],
        input=pinned,
        env=index_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    sdist = tomllib.loads(lock)["packages"][0]["sdist"]
    path = folder / Path(sdist["url"]).name
    with urllib.request.urlopen(sdist["url"], timeout=120) as answer:
        path.write_bytes(answer.read())
    if hashlib.sha256(path.read_bytes()).hexdigest() != sdist["hashes"]["sha256"]:
        sys.exit(f"{path.name} is not what the index describes")
    return path
