"""A hostile process: swaps directories, files and links as fast as it can until it is killed.

Started as ``python file_racer.py UID WORKSPACE SECRET``; it drops to UID after its start, so that
it can live in directories that only root may enter. Prints one line when it has begun.

Each name below is exchanged, in one system call, with a link to the secret that lies in a stash.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import sys

EXCHANGE = 2
libc = ctypes.CDLL(None, use_errno=True)
renameat2 = {"x86_64": 316, "aarch64": 276}[os.uname().machine]


class Swapped:
    """A name and its double in the stash: one of them is a link to the secret."""

    def __init__(self, path: str, targets: "list[str]", is_file: bool) -> None:
        self.path = path
        self.double = "stash/" + path.replace("/", "-")
        self.targets = itertools.cycle(targets)
        self.is_file = is_file

    def swap(self) -> None:
        libc.syscall(renameat2, -100, self.path.encode(), -100, self.double.encode(), EXCHANGE)

    def repair(self) -> None:
        """Make what the worker has moved or deleted, so that the next swaps matter again."""
        with contextlib.suppress(OSError):
            if not os.path.lexists(self.path):
                self.make_real()
            if not os.path.islink(self.path) and not os.path.islink(self.double):
                if os.path.isdir(self.double):
                    shutil.rmtree(self.double, ignore_errors=True)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.double)
                os.symlink(next(self.targets), self.double)
            elif os.path.islink(self.path) and os.path.islink(self.double):
                os.unlink(self.path)
                self.make_real()

    def make_real(self) -> None:
        if self.is_file:
            with open(self.path, "w") as file:
                file.write("inside")
            return
        os.makedirs(os.path.join(self.path, "sub/deep"), exist_ok=True)
        for name in ("file", "sub/file"):
            with open(os.path.join(self.path, name), "w") as file:
                file.write("inside")


def main() -> None:
    uid, workspace, secret = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.chdir(workspace)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.umask(0o022)
    os.mkdir("stash")
    swapped = [
        Swapped("door", [secret, "../secret"], is_file=False),
        Swapped("plain", [secret + "/file", "../secret/file"], is_file=True),
        Swapped("pile", [secret, "../secret"], is_file=False),
        Swapped("pile/sub", [secret + "/sub", "../../secret/sub"], is_file=False),
    ]
    for one in swapped:
        one.repair()
    print("begun", flush=True)
    for turn in itertools.count():
        for one in swapped:
            one.swap()
            if turn % 16 == 0:
                one.repair()


if __name__ == "__main__":
    main()
