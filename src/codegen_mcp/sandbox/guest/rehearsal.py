"""What a spare does before it waits: the way of a run, on nothing.

A forked process copies each page that it first writes to, refcounts included, and each copy costs
about two microseconds. Done here, before a run arrives, they are not on a caller's clock.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys

import finish
import frames
import program
from codec import decode, encode

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from config import Config

SOURCE = b"import sys, os\nclass A:\n    pass\ndef f(a):\n    return a\nx = [f(str(1)), {1: 2}]\n"


def rehearse(config: Config) -> None:
    """Touch what a run touches and leave no trace; never fails."""
    try:
        decode(encode([b"run"]))
        kind, args, _ = marshal.loads(marshal.dumps((b"code", [b"a"], {b"PATH": b"/bin"})))
        trial = program.Program(config, kind, "rehearsal", [os.fsdecode(a) for a in args], SOURCE)
        trial.load()
        trial.imported_packages()
        open_over_pipe()
        main = type(sys)("__main__")
        namespace = main.__dict__
        namespace["__builtins__"] = sys.modules["builtins"]
        frames.call(exec, trial.code, namespace)
        list(os.environb.items())
        finish.clear(main)
        sys.modules.copy()
        set(sys.path)
        gc.collect()
        gc.freeze()  # what the end of a run looks through is then the run's own
    except Exception:
        pass


def open_over_pipe() -> None:
    """Make the standard streams over a pipe, as a run's are; the run's own take its place."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    program.open_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.write("rehearsal\n")
        stream.flush()
    os.close(reader)
