"""The engine of this machine."""

from __future__ import annotations

from laq.core.scale_units import ScalePer
from laq.kernels import native
from laq.quantizers.common.coarse_engine import CoarseEngine
from laq.quantizers.common.engine import Engine
from laq.quantizers.common.mixed_engine import MixedEngine
from laq.quantizers.common.native_engine import NativeEngine
from laq.quantizers.common.torch_engine import TorchEngine
from laq.ranges import Range
from laq.ranges.mse import Mse


def engine_of(range: Range, per: ScalePer = ScalePer.GROUP) -> Engine:
    """Return what searches and rounds with a range.

    The native kernels if there are any, LAQ_KERNELS does not turn them off, and they know the range, which is
    `mse` alone; torch otherwise, and where a scale serves more than a group.
    """
    if per is not ScalePer.GROUP:
        return CoarseEngine(range, per)
    library = native.library()
    if library is None:
        return TorchEngine(range)
    kernels = NativeEngine(library)
    return kernels if isinstance(range, Mse) else MixedEngine(TorchEngine(range), kernels)
