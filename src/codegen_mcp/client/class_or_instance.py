"""A method that does one thing when called on the class and another on an object of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Concatenate, Generic, ParamSpec, TypeVar, overload

T = TypeVar("T")
C = ParamSpec("C")
I = ParamSpec("I")  # noqa: E741 - the parameters on an instance
CR = TypeVar("CR")
IR = TypeVar("IR")


class ClassOrInstance(Generic[T, C, CR, I, IR]):
    """Descriptor of two functions; each has its own parameters and result for type checkers."""

    def __init__(
        self,
        on_class: Callable[Concatenate[type[T], C], CR],
        on_instance: Callable[Concatenate[T, I], IR],
    ) -> None:
        self._on_class = on_class
        self._on_instance = on_instance
        self.__doc__ = on_class.__doc__

    @overload
    def __get__(self, instance: None, owner: type[T]) -> Callable[C, CR]: ...
    @overload
    def __get__(self, instance: T, owner: type[T]) -> Callable[I, IR]: ...
    def __get__(self, instance: T | None, owner: type[T]) -> Callable[C, CR] | Callable[I, IR]:
        if instance is None:
            return partial(self._on_class, owner)
        return partial(self._on_instance, instance)
