"""Runs inside a session's sandbox: builds a wheel from a source distribution.

A build runs code of the distribution's author, with no more rights than the session's own code,
and with fewer where the kernel has Landlock: it can write to its scratch directory and /tmp, not to
the environment or the workspace, so that a build which fails has changed nothing. Standard library
only, Python 3.8 or later. The job is a Python literal on standard input; words go to standard
error, one JSON line with the wheel's name and METADATA to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from typing import Any, Dict  # noqa: UP035 - Python 3.8

Message = Dict[str, Any]  # noqa: UP006 - Python 3.8

AREA = ".codegen-install"
METADATA_BYTES = 256 * 1024
FAILED = 70


def place(job: Message) -> Message:
    """Choose the paths that exist here: those of a sandbox with mounts, else the host's."""
    for paths in job["places"]:
        paths["venv"] = paths["venv"] or os.environ.get("VIRTUAL_ENV", "")
        if all(os.path.exists(path) for path in paths.values()):
            job.update(paths)
            return job
    raise FileNotFoundError(f"none of {job['places']} is there")


def confine(job: Message, scratch: str) -> None:
    """Let this process and what it starts write to the scratch directory only."""
    landlock: Dict[str, Any] = {}  # noqa: UP006 - Python 3.8
    exec(compile(job["landlock"], "landlock", "exec"), landlock)
    if landlock["abi"]() < 1:
        return
    rules = [("/", landlock["RUN"]), ("/dev", landlock["DEVICE"] | landlock["READ"])]
    landlock["restrict"]([*rules, (scratch, landlock["WRITE"]), ("/tmp", landlock["WRITE"])])


def build(job: Message) -> Message:
    """Build one wheel."""
    scratch = job["venv"] + "/" + AREA + "/build"
    for name in ("cache", "tmp", "dist"):
        os.makedirs(scratch + "/" + name, exist_ok=True)
    confine(job, scratch)
    before = set(os.listdir(scratch + "/dist"))
    argv = ["build", "--wheel", "--offline", "--no-index", "--no-config", "--no-progress"]
    argv += ["--no-sources", "--no-create-gitignore", "--python", job["venv"] + "/bin/python"]
    argv += ["--find-links", job["wheels"], "--out-dir", scratch + "/dist"]
    argv += ["--", job["wheels"] + "/" + job["source"]]
    env = {name: value for name, value in os.environ.items() if kept(name)}
    env.update({"TMPDIR": scratch + "/tmp", "HOME": scratch + "/tmp", "NO_COLOR": "1"})
    env.update({"UV_CACHE_DIR": scratch + "/cache", "UV_PYTHON_DOWNLOADS": "never"})
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, 2, 1),
    ]
    pid = os.posix_spawn(job["uv"], [job["uv"], *argv], env, file_actions=actions)
    status = os.waitpid(pid, 0)[1]
    if status:
        return {"code": os.WEXITSTATUS(status) or FAILED}
    built = sorted(set(os.listdir(scratch + "/dist")) - before)
    if len(built) != 1 or not built[0].endswith(".whl"):
        sys.stderr.write(f"the build made {built!r}, not one wheel\n")
        return {"code": FAILED}
    return {"code": 0, "wheel": built[0], "metadata": metadata(scratch + "/dist/" + built[0])}


def kept(name: str) -> bool:
    """Whether a variable of the session may take part (compilers' flags may, uv's settings not)."""
    return not name.startswith(("UV_", "PIP_", "PYTHON", "VIRTUAL_ENV", "LD_"))


def metadata(wheel: str) -> str:
    """Read the wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".dist-info/METADATA") and name.count("/") == 1:
                with archive.open(name) as file:
                    return file.read(METADATA_BYTES).decode("utf-8", "replace")
    raise ValueError("the wheel has no METADATA")


def main() -> int:
    """Run the job."""
    try:
        result = build(place(eval(sys.stdin.read(), {})))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        sys.stderr.write(f"the build failed: {error}\n")
        return FAILED
    sys.stdout.write(json.dumps(result) + "\n")
    return int(result["code"])


if __name__ == "__main__":
    sys.exit(main())
