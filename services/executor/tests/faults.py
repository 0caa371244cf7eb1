"""A memory store that fails on purpose: one fault each, for one port."""

from collections.abc import Callable
from typing import Any

from avtomatika_common.backend.ports import Backend


class Faulty:
    """`port` with some of its methods replaced by `instead`; the rest as it is."""

    def __init__(self, port: Any, **instead: object) -> None:
        self._port = port
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


def with_faults(backend: Backend, port: str, **instead: Callable[..., Any]) -> Any:
    """`backend` whose `port` has other methods."""
    return Faulty(backend, **{port: Faulty(getattr(backend, port), **instead)})
