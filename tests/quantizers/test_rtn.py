"""Every weight takes the nearest value of its grid."""

from dataclasses import replace

import pytest
import torch

from laq.core.formats import CANDIDATES, Integer
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.rtn import RoundToNearest


@pytest.mark.parametrize("candidate", [c for c in CANDIDATES if isinstance(c, Integer) and c.n_levels > 1])
@pytest.mark.parametrize("scale_format", ScaleFormat)
def test_no_other_code_is_nearer(candidate, scale_format):
    weight = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    method = RoundToNearest()
    choices = torch.full((2, 1), CANDIDATES.index(candidate), dtype=torch.uint8)
    codes = method.quantize(weight, method.prepare(torch.eye(64)), choices, scale_format=scale_format)
    restored = dequantize_columns(codes, choices, scale_format)
    for step in (-1, 1):
        other = codes.codes.int() + step
        legal = (other >= 0) & (other < candidate.n_levels)
        there = replace(codes, codes=other.clamp(0, 255).to(torch.uint8))
        moved = dequantize_columns(there, choices, scale_format)
        slack = 1e-5 * weight.abs().amax()
        assert ((moved - weight).abs() + slack >= (restored - weight).abs())[legal].all()


def test_column_weights_are_the_diagonal():
    hessian = torch.diag(torch.arange(1.0, 9.0)) + 0.5
    assert RoundToNearest().prepare(hessian).column_weights.tolist() == hessian.diagonal().tolist()
    assert RoundToNearest().prepare(hessian).factor is None
