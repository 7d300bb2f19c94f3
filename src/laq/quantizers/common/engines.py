"""The engine of this machine."""

from __future__ import annotations

from laq.kernels import native
from laq.quantizers.common.engine import Engine
from laq.quantizers.common.native_engine import NativeEngine
from laq.quantizers.common.torch_engine import TorchEngine


def engine() -> Engine:
    """Return the native kernels if there are any and LAQ_KERNELS does not turn them off; torch otherwise."""
    library = native.library()
    return TorchEngine() if library is None else NativeEngine(library)
