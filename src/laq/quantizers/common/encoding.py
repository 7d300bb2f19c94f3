"""How weights will be encoded, for those who ask what it costs before it is done."""

from __future__ import annotations

from dataclasses import dataclass

from laq.core.scheme import ScaleFormat
from laq.quantizers import Quantizer


@dataclass(frozen=True, slots=True)
class Encoding:
    """How weights are encoded.

    Parameters
    ----------
    quantizer : Quantizer
        Method that picks codes.
    group_size : int
        Columns that share a scale.
    scale_format : ScaleFormat
        How scales are stored.
    """

    quantizer: Quantizer
    group_size: int
    scale_format: ScaleFormat
