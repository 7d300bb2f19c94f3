"""Things that run forward: a torch module, and what laq must know to quantize it.

How to add a source: write a function that builds the module and returns `describe(module, ...)` in a file of
its own, and name it in `load_network`.
"""

from __future__ import annotations

from laq.networks.load import load_network
from laq.networks.module import Batch, KeptTensor, Network, Sidecars, WeightRef, describe

__all__ = ["Batch", "KeptTensor", "Network", "Sidecars", "WeightRef", "describe", "load_network"]
