"""Calls with an empty Python stack: a program finds its own frames and nothing below them.

The interpreter keeps the innermost frame in its thread state (CPython, Include/cpython/pystate.h).
While that place is empty, what C code calls starts a new stack: stack walks, tracebacks, warnings,
faulthandler and the recursion limit begin there. Each use first checks that the place holds the
caller's own frame; where it does not (a debug build, a later version), the call is an ordinary one.
"""

from __future__ import annotations

import _ctypes
import sys
from _functools import partial  # type: ignore[import-not-found]  # has no stub

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_VERSION = sys.version_info[:2]
_STABLE = (
    (3, 8) <= _VERSION <= (3, 13)
    and sys.maxsize > 2**32
    and not hasattr(sys, "gettotalrefcount")
    and not getattr(sys, "abiflags", "")
)
_FRAME_OF_OBJECT = 24
"""Offset, in a frame object since 3.11, of the frame itself."""
_INNERMOST = {(3, 8): 24, (3, 9): 24, (3, 10): 24, (3, 13): 72}
"""Offset of the innermost frame in the thread state."""
_CFRAME = {(3, 11): (56, 8), (3, 12): (56, 0)}
"""Offset of ``cframe`` in the thread state, and of the innermost frame in that."""
_DEPTH = {(3, 8): 32, (3, 9): 32, (3, 10): 32, (3, 11): 32, (3, 12): 28, (3, 13): 44}
"""Offset of the recursion depth in the thread state; since 3.11 it counts down from the limit."""


class _Word(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Function(_ctypes.CFuncPtr):  # type: ignore[misc]
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = _Word


_LIBRARY = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
_thread_state = _Function(_ctypes.dlsym(_LIBRARY, "PyThreadState_Get"))
_exit = _Function(_ctypes.dlsym(_LIBRARY, "Py_Exit"))


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function with no Python frame below it.

    What it leaves on of tracing and profiling is off until the next call: it may not see us.
    """
    target = partial(function, *arguments)  # written in C: what it calls starts a new stack
    place = None
    if _STABLE:
        state = int(_thread_state())
        own = id(sys._getframe())
        if _VERSION >= (3, 11):
            own = _Word.from_address(own + _FRAME_OF_OBJECT).value
        if _VERSION in _CFRAME:
            outer, inner = _CFRAME[_VERSION]
            address = _Word.from_address(state + outer).value + inner
        else:
            address = state + _INNERMOST[_VERSION]
        place = _Word.from_address(address)
        if place.value == own:
            _start_depth(state)
            place.value = 0
        else:
            place = None
    trace, profile = _left
    if trace is not None:
        partial(sys.settrace, trace)()
    if profile is not None:
        partial(sys.setprofile, profile)()
    try:
        return target()
    finally:
        if place is not None:
            place.value = own
        # Not called directly: that would be an event for the profile function.
        _left[:] = _get_trace(), _get_profile()
        _end_trace()
        _end_profile()


def end_natively(status: int) -> None:
    """Finalize the whole interpreter and exit; slow, and right where threads still run."""
    _exit(status)


def _start_depth(state: int) -> None:
    """Let the whole recursion limit be there."""
    depth = _Int.from_address(state + _DEPTH[_VERSION])
    if _VERSION < (3, 11):
        depth.value = -1 if _VERSION < (3, 9) else 0
        return
    limit = sys.getrecursionlimit()
    if _Int.from_address(state + _DEPTH[_VERSION] + 4).value == limit:
        depth.value = limit - (_VERSION >= (3, 12))


_left: list[Any] = [None, None]
"""Trace and profile function that the program left on."""
_get_trace, _get_profile = partial(sys.gettrace), partial(sys.getprofile)
_end_trace, _end_profile = partial(sys.settrace, None), partial(sys.setprofile, None)
