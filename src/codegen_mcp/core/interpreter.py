"""An interpreter that sessions can run, as found on the host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """One installed interpreter.

    A sandbox mounts every tree at its own path (RPATHs are absolute), read-only. Where ``sources``
    names another host path for a tree, that is what is mounted (a bind that a session's uid can
    reach); else the tree itself.
    """

    language: str
    """``python``."""
    name: str
    """``python3.11``: what SessionConfig.language may say."""
    version: str
    """``3.11.2``."""
    executable: Path
    """Real path, for example /usr/bin/python3.11."""
    trees: tuple[Path, ...]
    """Directories outside /usr that must be mounted for it to run; often empty."""
    sources: tuple[tuple[Path, Path], ...] = ()
    """(tree, host path to mount for it) where they differ."""
    site_packages: str
    """Relative to an environment: ``lib/python3.11/site-packages``."""
    template: Path
    """Host directory of the read-only environment from which the guest is started."""
    image: str = ""
    """Of the container it runs in; empty is the worker's own choice, or no container."""
