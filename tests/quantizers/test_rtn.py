"""Every weight takes the nearest value of its grid."""

import pytest
import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers.common.clip_search import dequantize_columns
from laq.quantizers.rtn import RoundToNearest


@pytest.mark.parametrize("n_levels", [2.0, 3.0, 4.0, 8.0, 16.0, 64.0])
@pytest.mark.parametrize("scale_format", ScaleFormat)
def test_no_other_code_is_nearer(n_levels, scale_format):
    weight = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    method = RoundToNearest()
    codes = method.quantize(
        weight, method.prepare(torch.eye(64)), torch.full((2, 16), n_levels), scale_format=scale_format
    )
    restored = dequantize_columns(codes.codes, codes.scales, codes.zero_points, scale_format)
    for step in (-1, 1):
        other = codes.codes.int() + step
        legal = (other >= 0) & (other < n_levels)
        moved = dequantize_columns(other.clamp(0, 255), codes.scales, codes.zero_points, scale_format)
        slack = 1e-5 * weight.abs().amax()
        assert ((moved - weight).abs() + slack >= (restored - weight).abs())[legal].all()


def test_column_weights_are_the_diagonal():
    hessian = torch.diag(torch.arange(1.0, 9.0)) + 0.5
    assert RoundToNearest().prepare(hessian).column_weights.tolist() == hessian.diagonal().tolist()
    assert RoundToNearest().prepare(hessian).factor is None
