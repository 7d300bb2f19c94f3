"""The search asks the quantizer itself, and takes nothing that is not worth it."""

import numpy as np
import pytest
import torch

from laq.core.importance import Importance
from laq.core.scheme import ScaleFormat
from laq.quantizers import QUANTIZERS
from laq.quantizers.common.encoding import Encoding
from laq.transforms.common.places import Place
from laq.transforms.common.rescale import Channels
from laq.transforms.common.search import best_factors

N = 128


def channels_of(uneven):
    """Even weights and inputs, of which every column was made `uneven` times larger and its input smaller."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, N, generator=generator) * uneven
    hessian = np.diag(1 / uneven.numpy() ** 2).astype(np.float32)
    importance = Importance(hessian, np.ones(96, np.float32), np.full(96, 1e3), np.full(N, 1e3))
    return Channels(Place("up", 0.0, ("down",)), (weight,), (importance,), torch.zeros(N, 4))


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_what_made_columns_uneven_is_undone(quantizer):
    encoding = Encoding(QUANTIZERS.get(quantizer)(), 64, ScaleFormat.LOG8)
    uneven = torch.exp(torch.randn(N, generator=torch.Generator().manual_seed(1)))
    candidates = [uneven, uneven.rsqrt(), uneven.reciprocal()]
    assert best_factors(channels_of(uneven), candidates, encoding) is candidates[2]


def test_nothing_is_taken_where_all_is_even():
    encoding = Encoding(QUANTIZERS.get("gptq")(), 64, ScaleFormat.LOG8)
    uneven = torch.exp(torch.randn(N, generator=torch.Generator().manual_seed(1)))
    assert best_factors(channels_of(torch.ones(N)), [uneven, uneven.reciprocal()], encoding) is None
