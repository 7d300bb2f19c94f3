"""Methods by name: every module of a package, and entry points of other packages."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from laq.core.errors import RequestError

Method = TypeVar("Method")


class Registry(Generic[Method]):
    """The methods of one package, found by file name and loaded when asked for.

    Parameters
    ----------
    kind : str
        Singular noun for messages, such as "quantizer".
    package : str
        Package whose modules hold one method each (subpackages are shared parts); also the entry point group.
    base : type
        Abstract class that methods derive from.
    """

    def __init__(self, kind: str, package: str, base: type[Method]) -> None:
        self.kind, self.package, self.base = kind, package, base

    def names(self) -> list[str]:
        """Return all method names, sorted."""
        path = importlib.import_module(self.package).__path__
        own = {module.name for module in pkgutil.iter_modules(path) if not module.ispkg}
        return sorted(own | {entry.name for entry in entry_points(group=self.package)})

    def get(self, name: str) -> type[Method]:
        """Return the class of a method.

        Raises
        ------
        RequestError
            If there is no such method; names those there are.
        """
        if name not in self.names():
            raise RequestError(
                f"unknown {self.kind} {name!r}", hint=f"choose one of: {', '.join(self.names())}"
            )
        for entry in entry_points(group=self.package, name=name):
            loaded: type[Method] = entry.load()
            return loaded
        module = importlib.import_module(f"{self.package}.{name}")
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, self.base)
            and value.__module__ == module.__name__
        ]
        assert len(found) == 1, f"{module.__name__} must define exactly one {self.base.__name__}"
        return found[0]
