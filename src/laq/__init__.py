"""laq gives each part of a neural network exactly the bits it needs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laq.core.curve import Curves
    from laq.core.errors import LaqError
    from laq.core.plan import Plan
    from laq.core.record import Record
    from laq.core.stats import Stats
    from laq.pipeline import quantize
    from laq.runtime.load import load
    from laq.runtime.result import Result
    from laq.steps import allocate, apply, calibrate, evaluate, measure, open_network

__version__ = "0.1.0"

_HOMES = {
    "Curves": "laq.core.curve",
    "LaqError": "laq.core.errors",
    "Plan": "laq.core.plan",
    "Record": "laq.core.record",
    "Result": "laq.runtime.result",
    "Stats": "laq.core.stats",
    "allocate": "laq.steps",
    "apply": "laq.steps",
    "calibrate": "laq.steps",
    "evaluate": "laq.steps",
    "load": "laq.runtime.load",
    "measure": "laq.steps",
    "open_network": "laq.steps",
    "quantize": "laq.pipeline",
}

__all__ = [
    "Curves",
    "LaqError",
    "Plan",
    "Record",
    "Result",
    "Stats",
    "allocate",
    "apply",
    "calibrate",
    "evaluate",
    "load",
    "measure",
    "open_network",
    "quantize",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import laq` itself needs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'laq' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
