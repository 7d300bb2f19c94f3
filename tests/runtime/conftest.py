"""Packed weights and a tiny packed language model, built in memory."""

import numpy as np
import pytest
import torch

from laq.core.groups import TileGrid
from laq.core.permutation import index_dtype
from laq.core.qtensor import QTensor
from laq.core.scheme import ScaleFormat
from laq.kernels import native
from laq.kernels.reference import pack
from laq.quantizers.rtn import RoundToNearest

INT4 = 5


def _packed_random(shape, group_size=64, *, choices=INT4, scale_format=ScaleFormat.LOG8, sorts=True, seed=0):
    """Round a random matrix to nearest; `choices` is one candidate or an array [n_row_blocks, n_groups]."""
    generator = np.random.default_rng(seed)
    grid = TileGrid(*shape, group_size)
    chosen = np.array(np.broadcast_to(choices, (grid.n_row_blocks, grid.n_groups)), np.uint8)
    matrix = torch.from_numpy(
        generator.standard_normal((grid.padded_columns, grid.padded_rows)).astype(np.float32)
    )
    method = RoundToNearest()
    by_group = torch.from_numpy(np.ascontiguousarray(chosen.T))
    found = method.quantize(
        matrix, method.prepare(torch.eye(grid.padded_columns)), by_group, scale_format=scale_format
    )
    orders = [generator.permutation(n).astype(index_dtype(n)) if sorts else None for n in shape]
    return pack(
        QTensor(
            grid,
            scale_format,
            chosen,
            found.codes.T.contiguous().numpy(),
            found.scales.T.contiguous().numpy(),
            found.zero_points.T.contiguous().numpy(),
            *orders,
        )
    )


@pytest.fixture(scope="session")
def packed_random():
    """Return a function (shape, group_size, choices, scale_format, sorts, seed) -> PackedTensor."""
    return _packed_random


@pytest.fixture(scope="session")
def packed_llama(packed_random):
    """Return a tied two-block Llama in memory and its packed copy: (network, module)."""
    transformers = pytest.importorskip("transformers", reason="needs the extra llm")
    from laq.networks import describe
    from laq.runtime.replace import packed_copy

    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = describe(transformers.LlamaForCausalLM(config).eval())
    packed = {weight.name: packed_random(weight.shape, 32, choices=7) for weight in network.weights}
    return network, packed_copy(network, packed)


@pytest.fixture
def decoded(monkeypatch):
    """Compute in torch, as machines without native kernels do."""
    monkeypatch.setattr(native, "library", lambda: None)
