"""The end of a program, step by step as Py_FinalizeEx does it (CPython, Python/pylifecycle.c).

A fork cannot finalize its interpreter cheaply; a bare ``os._exit`` would lose what is not flushed.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from program import Program

FLUSH_FAILED = 120
"""What an interpreter exits with when its standard streams cannot be flushed."""
INTERRUPTED = -1
"""Not a status: the process ends itself by SIGINT, as an interpreter does."""


def report(error: BaseException, program: Program, executable: str) -> int:
    """Print an uncaught exception as the interpreter would; returns the exit status."""
    if isinstance(error, SystemExit):
        return system_exit(error)
    if program.is_file and error is program.error and isinstance(error, OSError):
        print_error(
            f"{executable}: can't open file {program.path!r}: "
            f"[Errno {error.errno}] {error.strerror}"
        )
        return 2
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    error = error.with_traceback(trace)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        if not program.is_file and sys.excepthook is sys.__excepthook__ and program.is_main():
            show(error, program)
        else:
            sys.excepthook(type(error), error, trace)
    except SystemExit as exit_error:
        return system_exit(exit_error)
    except BaseException as hook_error:
        print_error("Error in sys.excepthook:")
        sys.__excepthook__(type(hook_error), hook_error, hook_error.__traceback__)
        print_error("\nOriginal exception was:")
        sys.__excepthook__(type(error), error, trace)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


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
    flush(sys.stdout)
    print_error(str(code))
    return 1


def print_error(text: str) -> None:
    """Print to what is sys.stderr now, quietly when it is gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except Exception:
        pass


def end(status: int, before: set[str]) -> None:
    """Join threads, run exit functions, flush, let go of every module; never returns."""
    threading = sys.modules.get("threading")
    if threading is not None:
        try:
            threading._shutdown()
        except BaseException as error:
            unraisable(error, threading, "Exception ignored in")
    try:
        atexit._run_exitfuncs()  # type: ignore[attr-defined]
    except BaseException:
        pass  # it printed it (Python 3.9 and older raise it as well)
    flushed = flush(sys.stdout)
    flushed &= flush(sys.stderr)
    release(before)
    for stream in (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__):
        flushed &= flush(stream, quiet=True)
    if not flushed:
        status = FLUSH_FAILED
    if status == INTERRUPTED:
        import _signal

        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        os.kill(os.getpid(), _signal.SIGINT)
    os._exit(status & 0xFF)


def flush(stream: object, quiet: bool = False) -> bool:
    """Flush a standard stream; False when what was printed cannot be delivered."""
    if stream is None or getattr(stream, "closed", False):
        return True
    try:
        stream.flush()  # type: ignore[attr-defined]
    except BaseException as error:
        if not quiet:
            unraisable(error, stream, "Exception ignored in")
        return False
    return True


def unraisable(error: BaseException, what: object, where: str) -> None:
    """Print as sys.unraisablehook does for an exception that nobody can catch."""
    print_error(f"{where}: {what!r}\n{type(error).__name__}: {error}")


def release(before: set[str]) -> None:
    """Let go of ``__main__`` and of what was imported since, newest first, as at an end.

    Files that are still open flush when they go. What something older still holds is flushed
    where it lies.
    """
    if sys.stdout is not sys.__stdout__:
        sys.stdout = sys.__stdout__
    if sys.stderr is not sys.__stderr__:
        sys.stderr = sys.__stderr__
    for name in ("last_type", "last_value", "last_traceback", "last_exc", "ps1", "ps2"):
        if hasattr(sys, name):
            setattr(sys, name, None)
    names = [n for n in sys.modules if n not in before and n not in ("atexit", "gc", "threading")]
    modules = [sys.modules.pop(name) for name in ["__main__", *names] if name in sys.modules]
    main, rest = modules[:1], modules[1:]
    for module in main:
        clear(getattr(module, "__dict__", {}))
    gc.collect()
    for module in reversed(rest):
        namespace = getattr(module, "__dict__", None)
        if isinstance(namespace, dict) and getattr(module, "__file__", None):
            clear(namespace)
    del modules, main, rest
    gc.collect()
    for item in gc.get_objects():
        if isinstance(item, (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)):
            if not item.closed and item.writable():
                flush(item, quiet=True)


def clear(namespace: dict[str, object]) -> None:
    """Set names to None, those with one underscore first (_PyModule_Clear)."""
    for private in (True, False):
        for name in list(namespace):
            single = name[:1] == "_" and name[1:2] != "_"
            if single is private and name != "__builtins__":
                namespace[name] = None
