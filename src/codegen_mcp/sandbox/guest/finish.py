"""The end of a program, step by step as Py_FinalizeEx does it (CPython, Python/pylifecycle.c).

To finalize a forked interpreter takes several milliseconds; a bare ``os._exit`` would lose what is
not flushed.
"""

from __future__ import annotations

import _signal
import _thread
import builtins
import gc
import io
import os
import sys
from _weakref import ref

import frames
from uncaught import INTERRUPTED, unraisable

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from types import ModuleType

FLUSH_FAILED = 120
"""What an interpreter exits with when its standard streams cannot be flushed."""
_kept: list[object] = []
_SPECIAL = (
    *("path", "argv", "ps1", "ps2", "last_type", "last_value", "last_traceback", "last_exc"),
    *("path_hooks", "path_importer_cache", "meta_path", "__interactivehook__"),
)


def end(status: int, before: set[str]) -> None:
    """Join threads, run exit functions, flush, let go of every module; never returns.

    Args:
        status: Exit status, or INTERRUPTED.
        before: Names of the modules that were there when the program began.
    """
    threading = sys.modules.get("threading")
    if threading is not None:
        try:
            frames.call(threading._shutdown)
        except BaseException as error:
            unraisable(error, threading, "threading shutdown")
    if "atexit" in sys.modules:
        try:
            frames.call(sys.modules["atexit"]._run_exitfuncs)
        except BaseException:
            pass  # it printed it (Python 3.9 and older raise it as well)
    if _thread._count() and status != INTERRUPTED:  # type: ignore[attr-defined]
        # Threads that nobody waits for must not find modules that are half gone.
        frames.end_natively(status)
    flushed = flush(getattr(sys, "stdout", None))
    flushed &= flush(getattr(sys, "stderr", None), quiet=True)
    if not _thread._count():  # type: ignore[attr-defined]
        release(before)
    flush_files()
    for stream in (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__):
        flushed &= flush(stream, quiet=True)
    if status == INTERRUPTED:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        os.kill(os.getpid(), _signal.SIGINT)
    os._exit(status & 0xFF if flushed else FLUSH_FAILED)


def flush_replaced() -> None:
    """Flush what stands in for the standard streams, as is done after every program."""
    for name in ("stderr", "stdout"):
        stream = getattr(sys, name, None)
        if stream is not getattr(sys, f"__{name}__", None):
            try:
                frames.call(stream.flush)  # type: ignore[union-attr]
            except BaseException:
                pass


def flush(stream: object, quiet: bool = False) -> bool:
    """Flush a standard stream; False when what was printed cannot be delivered."""
    if stream is None or getattr(stream, "closed", False):
        return True
    try:
        frames.call(stream.flush)  # type: ignore[attr-defined]
    except BaseException as error:
        if not quiet:
            unraisable(error, stream, "flushing sys.stdout")
        return False
    return True


def release(before: set[str]) -> None:
    """Let go of ``__main__`` and of what was imported since (finalize_modules in import.c).

    Older modules lose their names only: to take them down takes time, and nobody can see it.
    """
    if gc.isenabled():
        frames.call(gc.collect)
    modules = sys.modules
    older = modules.copy()
    _kept.append(older)
    sys.is_finalizing = (True).__bool__
    if hasattr(builtins, "_"):
        builtins._ = None
    for name in _SPECIAL:
        if hasattr(sys, name):
            if not name.startswith("last"):
                _kept.append(getattr(sys, name))
            setattr(sys, name, None)
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    new = ["__main__"]
    if len(modules) != len(before) or not before.issuperset(modules):
        new = [name for name in modules if name == "__main__" or name not in before]
    left = []
    for name in new:
        module = older.pop(name, None)
        if type(module) is type(sys):
            left.append(ref(module))
    module = None
    frames.call(modules.update, dict.fromkeys(new))
    frames.call(modules.clear)
    frames.call(gc.collect)
    for place in reversed(left):
        module = place()
        if module is not None:
            clear(module)
            module = None
    if len(new) > 1:
        frames.call(gc.collect)


def clear(module: ModuleType) -> None:
    """Set a module's names to None, those with one underscore first (_PyModule_ClearDict)."""
    namespace = module.__dict__
    for private in (True, False):
        names = [
            name
            for name, value in namespace.items()
            if value is not None
            and isinstance(name, str)
            and (name[:1] == "_" and name[1:2] != "_") is private
            and name != "__builtins__"
        ]
        frames.call(namespace.update, dict.fromkeys(names))


def flush_files() -> None:
    """Flush the files that something older than the program still holds."""
    kinds = (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)
    for item in [item for item in gc.get_objects() if issubclass(type(item), kinds)]:
        if not item.closed and item.writable():
            flush(item, quiet=True)
