"""What is said of an exception that nobody caught (CPython, Python/pythonrun.c and errors.c)."""

from __future__ import annotations

import io
import os
import sys

import frames

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from types import TracebackType

    from program import Program

INTERRUPTED = -1
"""Not a status: the process ends itself by SIGINT, as an interpreter does."""


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
        if hook is None:
            print_error("sys.excepthook is missing\n")
            sys.__excepthook__(type(error), error, error.__traceback__)
        elif program.is_file or hook is not sys.__excepthook__ or not shown(error, program):
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


def shown(error: BaseException, program: Program) -> bool:
    """Print a traceback with the lines of source text, which the interpreter looks for in files.

    The last line is the interpreter's own: it may suggest a name ("Did you mean"). False when
    nothing was printed: a program may have a traceback module of its own.
    """
    try:
        import linecache
        import traceback

        text = program.source.decode("utf-8", "replace")
        linecache.cache[program.path] = (len(text), None, text.splitlines(True), program.path)
        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        return False
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        sys.__excepthook__(type(error), error, error.__traceback__)
        last = sys.stderr.getvalue().splitlines(True)[-1:]
    finally:
        sys.stderr = stderr
    start, _, shorter = lines.rstrip("\n").rpartition("\n")
    if last and last[0].startswith(shorter):
        lines = start + "\n" + last[0]
    print_error(lines)
    return True


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
