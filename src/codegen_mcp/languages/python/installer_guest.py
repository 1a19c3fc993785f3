"""Runs inside a session's sandbox: installs into a copy of the environment, then swaps it in.

Standard library only, Python 3.8 or later, started with ``-I -S -c``, so that no module that the
session wrote takes part. One job comes as a Python literal on standard input; uv's words go to
standard error, the environment's path and uv's JSON to standard output, and the exit code is uv's.
Neither json nor typing is imported: each costs more than the rest of this program.

The environment (``/venv``) is never changed by uv. Its directories are cloned by hard links
(``bin``, whose scripts may be overwritten in place, is copied), uv installs into the clone, and
only when it succeeded is each directory exchanged with its clone, ``lib`` first: one rename(2)
with RENAME_EXCHANGE. What is to be exchanged stands in the ``commit`` file until the result is
printed; whoever finds that file later (the worker after a kill, the next install) undoes the
exchange. So the worker knows: with the last line of the answer the new environment is there to
stay, without it the old one is there or can be had back.
"""

from __future__ import annotations

import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

AREA = ".codegen-install"
JSON_BYTES = 256 * 1024
WORDS_BYTES = 16 * 1024
COPIED_BYTES = 256 * 1024
COMPILED_BYTES = 16 * 1024
"""Source that is compiled at once: about 5 ms."""
RENAME_EXCHANGE = 2
AT_FDCWD = -100
DONE = "installed"
"""The last line of an answer."""
FAILED = 70
"""Exit code for a failure of ours (sysexits.h EX_SOFTWARE)."""


def wipe(path: str) -> None:
    """Remove a tree, whatever its modes are; links are not followed."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(path)
        return
    except PermissionError:
        os.chmod(path, 0o700)
        entries = list(os.scandir(path))
    if entries and not os.access(path, os.W_OK | os.X_OK):
        os.chmod(path, 0o700)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            wipe(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def copy_file(source: str, target: str, mode: int) -> None:
    """Copy a small file with its mode."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        writer.write(reader.read())
    os.chmod(target, stat.S_IMODE(mode))


def clone(source: str, target: str, copied: bool) -> None:
    """Clone a directory by hard links; small files are copied where that is asked for."""
    os.mkdir(target)
    for entry in os.scandir(source):
        new = target + "/" + entry.name
        if entry.is_dir(follow_symlinks=False):
            clone(entry.path, new, copied)
        elif copied and entry.is_file(follow_symlinks=False):
            found = entry.stat(follow_symlinks=False)
            if found.st_size <= COPIED_BYTES:
                copy_file(entry.path, new, found.st_mode)
            else:
                link(entry.path, new)
        else:
            link(entry.path, new)
    os.chmod(target, stat.S_IMODE(os.stat(source).st_mode) | 0o700)


def link(source: str, target: str) -> None:
    """Hard-link a file, symbolic link or anything else; copy where the link count is at its end."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        found = os.lstat(source)
        if not stat.S_ISREG(found.st_mode):
            raise
        copy_file(source, target, found.st_mode)


def exchange(one: str, other: str, aside: str) -> None:
    """Swap two names in one step; in three, by way of a third name, where that cannot be had."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    swap = getattr(libc, "renameat2", None)
    if swap and not swap(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
        return
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def is_inode(path: str, inode: int) -> bool:
    """Whether a path is there and is that one."""
    try:
        return os.lstat(path).st_ino == inode
    except FileNotFoundError:
        return False


class Environment:
    """The session's environment and the area in it where an install is prepared."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.area = root + "/" + AREA
        self.next = self.area + "/next"

    def begin(self, keep: str) -> None:
        """Finish or drop what an earlier install left, then clone the environment."""
        self.finish(keep)
        for name in ("", "/cache", "/tmp", "/next"):
            os.makedirs(self.area + name, 0o700, exist_ok=True)
        for entry in os.scandir(self.root):
            new = self.next + "/" + entry.name
            if entry.is_symlink():
                link(entry.path, new)
            elif entry.is_dir() and entry.name != AREA:
                clone(entry.path, new, entry.name == "bin")

    def commit(self) -> None:
        """Swap the clone in, so that it can be undone until ``accept``."""
        swaps = [
            (entry.inode(), entry.name)
            for entry in os.scandir(self.next)
            if entry.is_dir(follow_symlinks=False)
        ]
        swaps.sort(key=lambda swap: (swap[1] != "lib", swap[1] != "bin", swap[1]))
        with open(self.area + "/commit.new", "wb") as file:
            for inode, name in swaps:
                file.write(b"%d %s\n" % (inode, os.fsencode(name)))
        os.rename(self.area + "/commit.new", self.area + "/commit")
        for _, name in swaps:
            new, live, aside = self.places(name)
            if os.path.lexists(live):
                exchange(new, live, aside)
            else:
                os.rename(new, live)

    def accept(self) -> None:
        """Make a commit final."""
        if os.path.lexists(self.area + "/commit"):
            os.unlink(self.area + "/commit")

    def undo(self) -> None:
        """Bring back what a commit that was not accepted has swapped."""
        with open(self.area + "/commit", "rb") as file:
            lines = [line.rstrip(b"\n").partition(b" ") for line in file]
        for inode, _, name in reversed(lines):
            self.undo_one(int(inode), *self.places(os.fsdecode(name)))

    def undo_one(self, inode: int, new: str, live: str, aside: str) -> None:
        """Bring the old directory back, whichever of the three names it and the new one have."""
        if is_inode(live, inode):
            if os.path.lexists(aside):
                os.rename(live, new)
                os.rename(aside, live)
            elif os.path.lexists(new):
                exchange(new, live, aside)
            else:
                os.rename(live, new)
        elif is_inode(aside, inode):
            if not os.path.lexists(live):
                os.rename(new, live)
        elif os.path.lexists(aside):
            os.rename(aside, live)

    def places(self, name: str) -> tuple[str, str, str]:
        """Return where a directory's clone, itself and the third name of a swap are."""
        return f"{self.next}/{name}", f"{self.root}/{name}", f"{self.area}/aside-{name}"

    def new_modules(self, site: str) -> list[str]:
        """Return the modules of the distributions that only the clone has, by their RECORD."""
        live = set(os.listdir(self.root + "/" + site))
        found: list[str] = []
        for name in os.listdir(self.next + "/" + site):
            if name.endswith(".dist-info") and name not in live:
                with open(f"{self.next}/{site}/{name}/RECORD", encoding="utf-8") as file:
                    paths = [line.partition(",")[0] for line in file]
                found += [path for path in paths if path.endswith(".py") and ".." not in path]
        return found

    def compile(self, site: str, modules: list[str]) -> None:
        """Write bytecode where that is quick; else the first import of each module does."""
        from importlib.machinery import SourceFileLoader

        paths = [f"{self.root}/{site}/{module}" for module in modules]
        try:
            if sum(os.stat(path).st_size for path in paths) > COMPILED_BYTES:
                return
            for path in paths:
                SourceFileLoader("module", path).get_code("module")
        except (OSError, SyntaxError, ValueError, ImportError):
            return  # the import will say what is wrong with it

    def finish(self, keep: str = "") -> None:
        """Undo a commit that was not accepted, and clear the area but for one name."""
        try:  # noqa: SIM105 - contextlib takes longer to import than the rest takes to run
            self.undo()
        except (OSError, ValueError):
            pass  # there was none, or it is none of ours
        if not keep:
            wipe(self.area)
        elif os.path.isdir(self.area):
            for name in os.listdir(self.area):
                if name != keep:
                    wipe(self.area + "/" + name)


class Uv:
    """Runs uv in the prepared environment."""

    def __init__(self, job: dict[str, Any], environment: Environment) -> None:
        self.job = job
        self.environment = environment
        area = environment.area
        self.env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": area + "/tmp",
            "TMPDIR": area + "/tmp",
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "UV_CACHE_DIR": area + "/cache",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_CONCURRENT_INSTALLS": "1",  # its thread pool costs more than it saves
        }
        self.common = ["--offline", "--no-index", "--no-config", "--no-progress", "--no-sources"]
        self.common += ["--python", job["venv"] + "/bin/python"]

    def install(self) -> dict[str, Any]:
        """Install into the clone."""
        job, built = self.job, self.environment.area + "/build/dist"
        argv = ["pip", "install", *self.common, "--prefix", self.environment.next]
        argv += ["--link-mode", "hardlink", "--output-format", "json", "--no-build", "--strict"]
        for directory in [job["wheels"], *([built] if job["built"] else [])]:
            argv += ["--find-links", directory]
        return self.run([*argv, *job["flags"], "--", *job["requirements"]])

    def run(self, arguments: list[str]) -> dict[str, Any]:
        """Run uv with its output in files, which cannot block it."""
        area, words = self.environment.area, self.environment.area + "/words"
        out = area + "/answer"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, out, flags, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, words, flags, 0o600),
        ]
        uv = self.job["uv"]
        pid = os.posix_spawn(uv, [uv, *arguments], self.env, file_actions=actions)
        status = os.waitpid(pid, 0)[1]
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return {
            "code": 128 + signal if signal else os.WEXITSTATUS(status),
            "json": tail(out, JSON_BYTES),
            "words": tail(words, WORDS_BYTES),
        }


def tail(path: str, limit: int) -> str:
    """Read the end of a file."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
        return file.read(limit).decode("utf-8", "replace")


def place(job: dict[str, Any]) -> dict[str, Any]:
    """Choose the paths that exist here: those of a sandbox with mounts, else the host's."""
    for paths in job["places"]:
        paths["venv"] = paths["venv"] or os.environ.get("VIRTUAL_ENV", "")
        if all(os.path.exists(path) for path in paths.values()):
            job.update(paths)
            return job
    raise FileNotFoundError(f"none of {job['places']} is there")


def say(text: str) -> None:
    """Print all of it, now."""
    data = text.encode()
    while data:
        data = data[os.write(1, data) :]


def install(job: dict[str, Any]) -> int:
    """Do the whole install."""
    environment = Environment(job["venv"])
    try:
        environment.begin("build" if job["built"] else "")
        for name, content in job["seed"].items():
            path = environment.area + "/cache/" + name
            os.makedirs(os.path.dirname(path))
            with open(path, "wb") as file:
                file.write(content)
        result = Uv(job, environment).install()
        sys.stderr.write(result["words"])
        if result["code"] == 0:
            modules = environment.new_modules(job["site"])
            environment.commit()
            environment.compile(job["site"], modules)
            say(f"{job['venv']}\n{result['json']}\n{DONE}\n")
            environment.accept()
    finally:
        environment.finish()
    return int(result["code"])


def main() -> int:
    """Run one job: ``install``; after one that was killed, ``undo`` or ``keep``."""
    try:
        job = place(eval(sys.stdin.read(), {}))  # from the worker; literals only
        if job["do"] == "install":
            return install(job)
        environment = Environment(job["venv"])
        if job["do"] == "keep":
            environment.accept()
        environment.finish()
    except OSError as error:
        sys.stderr.write(f"the environment is as before: {error}\n")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
