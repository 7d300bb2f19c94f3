"""What a quantizer leaves on a few rows at several formats, all in one call: measured, not predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.quantizers import Feedback, Quantizer
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.common.sorting import SortedWeight


def tried_losses(
    sample: SortedWeight,
    quantizer: Quantizer,
    feedback: Feedback,
    candidates: Sequence[int],
    *,
    scale_format: ScaleFormat,
) -> npt.NDArray[np.float64]:
    """Return the loss of a sample under the full hessian after quantization; float64 [n_candidates], nats.

    Parameters
    ----------
    sample : SortedWeight
        Whole tiles of rows.
    quantizer, feedback
        Method, and what it prepared from the sample's hessian.
    candidates : sequence of int
        Positions in `CANDIDATES`, each of which all tiles take in turn.
    scale_format : ScaleFormat
        How scales are stored.
    """
    n = sample.matrix.shape[1]
    repeated = sample.matrix.repeat(1, len(candidates))
    of_blocks = torch.tensor(candidates, dtype=torch.uint8).repeat_interleave(n // TILE_ROWS)
    choices = of_blocks.expand(sample.grid.n_groups, -1).contiguous()
    codes = quantizer.quantize(repeated, feedback, choices, scale_format=scale_format)
    error = dequantize_columns(codes, choices, scale_format, feedback.palettes) - repeated
    by_row = ((sample.hessian @ error) * error).sum(0).view(len(candidates), n)
    return np.asarray((0.5 * sample.rows * by_row).sum(1).double().numpy())
