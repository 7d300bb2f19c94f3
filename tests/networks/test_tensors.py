"""Between files and torch: the same bytes, and types that torch knows."""

import numpy as np
import pytest
import torch

from laq.core.errors import FormatError
from laq.io.safetensors import RawTensor
from laq.networks.tensors import TORCH_DTYPES, from_raw, to_raw


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 5)], ids=str)
def test_every_type_comes_back_as_it_was(dtype, shape):
    tensor = torch.arange(15).reshape(3, 5)[: 3 if shape else 1].to(dtype)
    tensor = tensor.reshape(-1)[: int(np.prod(shape))].reshape(shape)
    found = from_raw(to_raw(tensor))
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found, tensor)


def test_tensor_owns_its_bytes_unless_it_is_placed():
    array = np.arange(4, dtype=np.float32)
    owned, placed = from_raw(RawTensor.of(array)), from_raw(RawTensor.of(array), place=lambda found: found)
    array[:] = 9
    assert owned.tolist() == [0, 1, 2, 3]
    assert placed.tolist() == [9] * 4


def test_type_that_torch_lacks_is_refused():
    with pytest.raises(FormatError, match="C64"):
        from_raw(RawTensor.of(np.ones(2, np.complex64)))


def test_truth_values_are_zero_or_one():
    with pytest.raises(FormatError, match="truth values"):
        from_raw(RawTensor("BOOL", (3,), np.array([0, 1, 2], np.uint8)))
