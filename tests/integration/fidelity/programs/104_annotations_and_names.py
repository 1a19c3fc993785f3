"""The module's docstring."""

from __future__ import annotations

value: int = 1
other: "list[str]"


def f(a: int) -> str: ...


class K:
    x: int
    print(__qualname__, __module__)


print(__doc__, __annotations__, f.__annotations__, K.__annotations__, f.__module__, K.__module__)
print(f, K, K(), f.__globals__ is globals(), f.__code__.co_filename, f.__qualname__)
print(__builtins__.__dict__ is vars(__import__("builtins")), __loader__.get_source("__main__")[:12])
print(__loader__.is_package("__main__"), __loader__.get_filename("__main__"), __debug__)
print(repr(__import__("__main__")), __loader__.__class__.__module__)
del annotations
if __name__ == "__main__":
    print("is main")
