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

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from types import ModuleType, TracebackType

    from program import Program

FLUSH_FAILED = 120
"""What an interpreter exits with when its standard streams cannot be flushed."""
INTERRUPTED = -1
"""Not a status: the process ends itself by SIGINT, as an interpreter does."""
_kept: list[object] = []
_SPECIAL = (
    *("path", "argv", "ps1", "ps2", "last_type", "last_value", "last_traceback", "last_exc"),
    *("path_hooks", "path_importer_cache", "meta_path", "__interactivehook__"),
)


def report(error: BaseException, program: Program) -> int:
    """Print an uncaught exception as the interpreter would; returns the exit status."""
    if isinstance(error, SystemExit):
        return system_exit(error)
    error = error.with_traceback(own_part(error.__traceback__))
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        hook = getattr(sys, "excepthook", None)
        if not program.is_file and hook is sys.__excepthook__ and program.is_main():
            show(error, program)
        elif hook is None:
            print_error("sys.excepthook is missing\n")
            sys.__excepthook__(type(error), error, error.__traceback__)
        else:
            frames.call(hook, type(error), error, error.__traceback__)
    except SystemExit as exit_error:
        return system_exit(exit_error)
    except BaseException as hook_error:
        print_error("Error in sys.excepthook:\n")
        trace = own_part(hook_error.__traceback__)
        sys.__excepthook__(type(hook_error), hook_error.with_traceback(trace), trace)
        print_error("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, error.__traceback__)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def own_part(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of the guest that it begins with."""
    here = os.path.dirname(__file__)
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == here:
        trace = trace.tb_next
    return trace


def show(error: BaseException, program: Program) -> None:
    """Print a traceback with the lines of source text, which the interpreter looks for in files."""
    import linecache
    import traceback

    text = program.source.decode("utf-8", "replace")
    linecache.cache[program.path] = (len(text), None, text.splitlines(True), program.path)
    traceback.print_exception(type(error), error, error.__traceback__)


def system_exit(error: SystemExit) -> int:
    """Exit status of a SystemExit: none is 0, a number itself, all else is printed and 1."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    try:
        if getattr(sys, "stderr", None) is None:
            print_error(str(code))
        else:
            sys.stderr.write(str(code))
    except BaseException:
        pass
    print_error("\n")
    return 1


def print_error(text: str) -> None:
    """Print to what is sys.stderr now, else to its descriptor (PySys_WriteStderr)."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except BaseException:
        try:
            os.write(2, text.encode("utf-8", "backslashreplace"))
        except OSError:
            pass


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


def unraisable(error: BaseException, what: object, doing: str) -> None:
    """Hand an exception that nobody can catch to sys.unraisablehook.

    Until Python 3.12 it is told the object, since then what was done.
    """
    message = None
    if sys.version_info >= (3, 13):
        what, message = None, "Exception ignored on " + doing

    class Raises:
        def __del__(self) -> None:
            raise error

    hook = sys.unraisablehook
    seen: list[sys.UnraisableHookArgs] = []
    sys.unraisablehook = seen.append
    Raises()  # the only way to the type of the hook's argument
    sys.unraisablehook = hook
    trace = own_part(error.__traceback__)
    error = error.with_traceback(trace)
    make = type(seen[0])
    try:
        frames.call(hook, make((type(error), error, trace, message, what)))  # type: ignore[call-arg]
    except BaseException:
        pass


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
    for item in gc.get_objects():
        if isinstance(item, (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)):
            if not item.closed and item.writable():
                flush(item, quiet=True)
