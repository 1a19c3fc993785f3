"""Asks one interpreter what it is, by running it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen_mcp.sandbox.base import HostIdentity

PROBE_TIMEOUT_S = 10.0
"""A cold start on a busy disk takes a second or two."""
OLDEST = (3, 8)
NEEDED_MODULES = ("asyncio", "ctypes", "email", "json", "logging", "multiprocessing", "unittest")
"""What tells a whole standard library from a minimal one."""

_ANSWER_BYTES = 64 * 1024
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
# It must also parse where it is refused, under Python 2 for example.
_SCRIPT = """
import json, os, sys, sysconfig
info = {
    "implementation": getattr(getattr(sys, "implementation", None), "name", "unknown"),
    "version": sys.version.split()[0],
    "version_info": list(sys.version_info[:3]),
}
if sys.version_info >= (3, 8):
    import importlib.util
    base, name = sys.base_exec_prefix, "python%d.%d" % sys.version_info[:2]
    own = getattr(sys, "_base_executable", "") or sys.executable
    if sys.prefix != sys.base_prefix:
        beside = os.path.join(base, "bin", name)
        own = beside if os.path.exists(beside) else own
    else:
        own = sys.executable
    missing = [m for m in sys.argv[1:] if importlib.util.find_spec(m) is None]
    loaded = set()
    for module in ("_ctypes", "_ssl", "_sqlite3", "_lzma", "_bz2", "readline", "zlib", "_uuid"):
        try:
            __import__(module)
        except ImportError:
            pass
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                path = line.rstrip("\\n").partition("/")[2]
                if ".so" in path:
                    loaded.add(os.path.dirname("/" + path))
    except OSError:
        pass
    info.update(
        executable=os.path.realpath(own),
        prefixes=[sys.base_prefix, sys.base_exec_prefix],
        stdlib=[sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")],
        libraries=sorted(loaded),
        prefix=sys.prefix,
        missing=missing,
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    )
print(json.dumps(info))
"""


class NotUsable(Exception):
    """Sessions cannot run this interpreter; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an interpreter said of itself."""

    executable: Path
    """Real path of the base interpreter, also when an environment's was asked."""
    version: str
    series: str
    """``3.11``, or ``3.13t`` for a free-threaded build."""
    prefix: Path
    """``sys.prefix``."""
    base_prefix: Path
    directories: tuple[Path, ...]
    """Prefixes, standard library and the directories of the shared objects that it loads."""
    standard_library: tuple[Path, ...]


def ask(path: Path, identity: HostIdentity | None) -> Facts:
    """Run an interpreter and return what it says.

    Args:
        path: The interpreter; may be a link, an environment's or a starter script.
        identity: Whom to run it as; None is the worker's own user.

    Raises:
        NotUsable: It does not run, does not answer in time, or is not a whole CPython >= 3.8.
    """
    try:
        there = path.is_file()
    except OSError as error:
        raise NotUsable(f"it cannot be looked at: {error.strerror}") from None
    if not there:
        raise NotUsable(f"there is no file {str(path)!r}")
    answer = _run([str(path), "-I", "-B", "-c", _SCRIPT, *NEEDED_MODULES], identity)
    try:
        said: dict[str, Any] = json.loads(answer)
        version_info = tuple(said["version_info"])
        if said["implementation"] != "cpython" or version_info < OLDEST:
            raise NotUsable(
                f"it is {said['implementation']} {said['version']}; CPython "
                f"{OLDEST[0]}.{OLDEST[1]} or later is needed"
            )
        if said["missing"]:
            raise NotUsable(
                f"its standard library lacks {', '.join(said['missing'])}; install the whole of it"
            )
        return Facts(
            executable=Path(said["executable"]),
            version=str(said["version"]),
            series=f"{version_info[0]}.{version_info[1]}" + "t" * said["free_threaded"],
            prefix=Path(said["prefix"]),
            base_prefix=Path(said["prefixes"][0]),
            directories=tuple(
                Path(os.path.normpath(one))
                for one in (*said["prefixes"], *said["stdlib"], *said["libraries"])
            ),
            standard_library=tuple(Path(one) for one in said["stdlib"]),
        )
    except (ValueError, KeyError, TypeError, IndexError):
        raise NotUsable("it did not answer as a Python interpreter does") from None


def _run(command: list[str], identity: HostIdentity | None) -> bytes:
    other = identity if os.geteuid() == 0 else None
    try:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            user=other.uid if other else None,
            group=other.gid if other else None,
            extra_groups=[] if other else None,
        )
    except OSError as error:
        raise NotUsable(f"it cannot be started: {error.strerror}") from None
    with process:
        try:
            answer, errors = process.communicate(timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise NotUsable(f"it did not answer within {PROBE_TIMEOUT_S:.0f} s") from None
        finally:
            # Also what a starter script left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise NotUsable(f"it ended with {process.returncode}: {last[:200]}")
    return answer[:_ANSWER_BYTES]
