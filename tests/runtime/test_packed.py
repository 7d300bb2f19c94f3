"""A packed weight behaves like any module: state, copies, casts; and it stays small."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from laq.core.errors import RequestError
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import dequantize
from laq.runtime.packed import PackedWeight
from laq.runtime.replace import resident_bytes

KEYS = {
    "payload",
    "bits",
    "groups",
    "scales",
    "scale_base",
    "zero_points",
    "tile_starts",
    "zero_offsets",
    "row_offsets",
    "column_permutation",
    "row_permutation",
}


@pytest.fixture(params=list(ScaleFormat), ids=lambda scale_format: scale_format.value)
def packed(request, packed_random):
    choices = np.array([[5, 3, 0], [8, 4, 1]])
    return packed_random((30, 150), 64, choices=choices, scale_format=request.param)


def test_state_dict_holds_the_packed_bytes_alone(packed):
    expected = KEYS if packed.scale_format.is_log else KEYS - {"scale_base"}
    assert set(PackedWeight(packed).state_dict()) == expected


def test_state_survives_saving_and_loading(packed, packed_random):
    weight = PackedWeight(packed)
    file = io.BytesIO()
    torch.save(weight.state_dict(), file)
    file.seek(0)
    choices = np.array([[5, 3, 0], [8, 4, 1]])
    other = PackedWeight(
        packed_random((30, 150), 64, choices=choices, scale_format=packed.scale_format, seed=1)
    )
    assert not torch.equal(other.dequantize(), weight.dequantize())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.dequantize(), weight.dequantize())


def test_deep_copy_shares_nothing(packed):
    weight = PackedWeight(packed)
    twin = copy.deepcopy(weight)
    before = twin.dequantize().clone()
    assert torch.equal(weight.dequantize(), before)
    for buffer in weight.buffers():
        buffer.zero_()
    assert torch.equal(twin.dequantize(), before)


def test_changing_the_source_sections_does_not_change_the_weight(packed):
    weight = PackedWeight(packed)
    before = weight.dequantize().clone()
    packed.payload[:] = 0
    assert torch.equal(weight.dequantize(), before)


def test_pickling_is_refused_with_the_way_out(packed):
    with pytest.raises(RequestError, match=r"result\.save"):
        pickle.dumps(PackedWeight(packed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_leaves_what_is_stored_alone(packed, dtype):
    weight = PackedWeight(packed)
    before = weight.dequantize().clone()
    weight.to(dtype)
    assert not any(buffer.is_floating_point() for buffer in weight.buffers())
    assert torch.equal(weight.dequantize(), before)
    assert np.array_equal(before.numpy(), dequantize(packed))


def test_moving_to_meta_keeps_types_and_shapes(packed):
    weight = PackedWeight(packed)
    before = {name: (tensor.dtype, tensor.shape) for name, tensor in weight.state_dict().items()}
    weight.to("meta")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in weight.state_dict().items()} == before
    assert resident_bytes(weight) == 0


@pytest.mark.parametrize("scale_format", ScaleFormat)
def test_memory_stays_within_fifteen_percent_of_the_packed_bytes(packed_random, scale_format):
    choices = np.random.default_rng(0).choice([1, 3, 4, 5, 6], (64, 16))
    packed = packed_random((1024, 1024), 64, choices=choices, scale_format=scale_format)
    assert packed.size_bytes <= resident_bytes(PackedWeight(packed)) * 1.15
    assert resident_bytes(PackedWeight(packed)) <= packed.size_bytes * 1.15


def test_printing_names_the_sizes(packed):
    assert "PackedWeight" in repr(PackedWeight(packed))
