"""What a token reads, who takes part, and that packed matrices of any width do."""

import sys

import pytest
import torch
from torch import nn

from laq import benchmark
from laq.benchmark import (
    MIXED,
    bytes_per_token,
    network_writer,
    product_contenders,
    random_packed,
    reading_contender,
    same_threads,
)
from laq.core.errors import RequestError
from laq.core.packing import CODE_BITS, TAGS
from laq.evaluation import speed
from laq.kernels import native
from laq.kernels.reference import dequantize
from laq.runtime.embedding import PackedEmbedding
from laq.runtime.linear import PackedLinear
from laq.runtime.packed import PackedWeight

INT4 = 5
INTEGERS = tuple(f"laq {bits} bit" for bits in (2, 3, 4, 8))
WIDTHS = (*INTEGERS, *(f"laq trellis {bits}" for bits in (2, 3, 4)), "laq mixed")
MINE = tuple(name for width in WIDTHS for name in (width, f"{width}, kernel"))


class TiedModel(nn.Module):
    """A language model with one packed weight at both ends, a norm, and a layer that no token meets."""

    def __init__(self):
        super().__init__()
        packed = PackedWeight(random_packed((96, 64), INT4))
        self.embedding = PackedEmbedding(packed, dtype=torch.float32)
        self.norm = nn.LayerNorm(64)
        self.head = PackedLinear(packed, None)
        self.unused = nn.Linear(64, 64)

    def forward(self, input_ids, use_cache):
        return self.head(self.norm(self.embedding(input_ids)))


class DenseModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(96, 64)
        self.head = nn.Linear(64, 96)

    def forward(self, input_ids, use_cache):
        return self.head(self.embedding(input_ids))


@pytest.fixture
def few_copies(monkeypatch):
    monkeypatch.setattr(speed, "ROTATED_BYTES", 1 << 16)
    monkeypatch.setattr(speed, "SETTLE_S", 0.0)


def test_token_reads_the_head_a_row_block_and_the_norm():
    module = TiedModel()
    weight = sum(buffer.nbytes for buffer in module.head.packed.buffers())
    assert bytes_per_token(module) == weight + weight // 6 + 2 * 64 * 4


def test_token_reads_one_row_of_a_dense_embedding():
    assert bytes_per_token(DenseModel()) == 64 * 4 + (96 * 64 + 96) * 4


def test_counting_leaves_no_hook():
    module = DenseModel()
    bytes_per_token(module)
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_module_that_is_no_language_model_is_refused():
    with pytest.raises(RequestError, match="DenseModel"):
        network_writer("x", DenseModel(), n_prompt=4, n_new=2)


@pytest.mark.usefixtures("few_copies")
def test_every_width_and_torch_multiply():
    contenders, reading, _ = product_contenders((48, 64), threads=1)
    inputs = torch.ones(2, 64)
    results = {
        one.name: one.bind(inputs)(1) for one in contenders if not one.name.startswith(("onnx", "ggml"))
    }
    assert set(results) == {*MINE, "torch fp32", "torch bf16"}
    assert all(result.shape == (2, 48) for result in results.values())
    expected = torch.ones(64) @ torch.from_numpy(dequantize(random_packed((48, 64), INT4))).T
    assert torch.allclose(results["laq 4 bit"][0], expected, rtol=1e-3, atol=1e-5)
    assert all(results[width].equal(results[f"{width}, kernel"]) for width in WIDTHS)
    assert reading.weight_bytes == next(one.weight_bytes for one in contenders if one.name == "laq 4 bit")


@pytest.mark.usefixtures("few_copies")
def test_mixed_matrix_has_all_widths_and_the_bytes_of_four_bits():
    contenders, _, _ = product_contenders((16 * 20, 64), threads=1)
    size = {one.name: one.weight_bytes for one in contenders}
    assert size["laq mixed"] == size["laq 4 bit"]
    assert {CODE_BITS[TAGS[choice]] for choice in MIXED} == {1, 2, 3, 4, 5, 6, 8}


@pytest.mark.usefixtures("few_copies")
def test_what_is_not_installed_is_named_with_its_line(monkeypatch):
    for name in ("onnxruntime", "llama_cpp", "llama_cpp._ggml"):
        monkeypatch.setitem(sys.modules, name, None)
    contenders, _, missing = product_contenders((16, 32), threads=1)
    assert [one.name for one in contenders] == [*MINE, "torch fp32", "torch bf16"]
    assert missing == {
        "onnxruntime": "pip install onnx onnxruntime",
        "llama.cpp": "pip install llama-cpp-python",
    }


@pytest.mark.usefixtures("few_copies")
@pytest.mark.parametrize("package", ["onnxruntime", "llama_cpp"])
def test_other_runtimes_multiply_where_rows_fit(package):
    pytest.importorskip(package)
    prefix = {"onnxruntime": "onnxruntime", "llama_cpp": "ggml"}[package]
    for n_columns, has_any in ((256, True), (250, False)):
        contenders, _, _ = product_contenders((32, n_columns), threads=1)
        found = [one for one in contenders if one.name.startswith(prefix)]
        assert bool(found) == has_any
        for one in found:
            one.bind(torch.ones(3, n_columns))(0)


@pytest.mark.parametrize("has_kernels", [True, False])
def test_reading_reads_every_copy(monkeypatch, few_copies, has_kernels):
    if not has_kernels:
        monkeypatch.setattr(native, "library", lambda: None)
    reading = reading_contender(4096)
    run = reading.bind(torch.empty(0))
    assert reading.n_copies == 16
    assert [int(run(copy)) for copy in range(16)] == [0] * 16


def test_torch_uses_as_many_threads_as_the_kernels_and_no_longer(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(benchmark, "usable_threads", lambda: before + 1)
    with same_threads() as threads:
        assert threads == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
