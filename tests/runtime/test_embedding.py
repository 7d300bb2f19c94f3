"""A packed embedding returns the rows of its dequantized weight."""

import pytest
import torch

from laq.runtime.embedding import PackedEmbedding
from laq.runtime.packed import PackedWeight


@pytest.fixture(params=[True, False], ids=["sorted", "unsorted"])
def weight(request, packed_random):
    return PackedWeight(packed_random((50, 70), 64, sorts=request.param))


@pytest.mark.parametrize("ids", [[0], [49, 0, 49, 17], [[3, 1], [16, 15]], []])
def test_rows_equal_those_of_the_whole_weight(weight, ids):
    index = torch.tensor(ids, dtype=torch.int64)
    rows = PackedEmbedding(weight, dtype=torch.float32)(index)
    assert rows.shape == (*index.shape, 70)
    assert torch.equal(rows, weight.dequantize()[index])


def test_result_is_scaled_and_typed_as_asked(weight):
    embedding = PackedEmbedding(weight, dtype=torch.bfloat16, scale=55.4256)
    ids = torch.arange(50)
    scale = torch.tensor(55.4256, dtype=torch.bfloat16)
    assert torch.equal(embedding(ids), weight.dequantize().bfloat16() * scale)


def test_casting_changes_the_type_of_the_result(weight):
    embedding = PackedEmbedding(weight, dtype=torch.float32).to(torch.bfloat16)
    assert torch.equal(embedding(torch.arange(50)), weight.dequantize().bfloat16())


def test_ids_beyond_the_vocabulary_are_refused(weight):
    with pytest.raises(IndexError):
        PackedEmbedding(weight, dtype=torch.float32)(torch.tensor([50]))


def test_sizes_are_those_of_the_weight(weight):
    embedding = PackedEmbedding(weight, dtype=torch.float32)
    assert (embedding.num_embeddings, embedding.embedding_dim) == (50, 70)
    assert "50, 70" in repr(embedding)
