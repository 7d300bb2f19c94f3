"""How fast packed weights are, against other ways to run the same sizes on the same machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from laq.core.errors import RequestError
from laq.core.formats import CANDIDATES
from laq.core.groups import TILE_ROWS, TileGrid
from laq.core.packing import TAGS, ZERO_POINT_BITS, PackedTensor
from laq.core.permutation import index_dtype
from laq.core.qtensor import QTensor, zero_point_value
from laq.core.scheme import ScaleFormat
from laq.core.threads import usable_threads
from laq.evaluation import ggml, llama_cpp, onnx_runtime, speed
from laq.evaluation.ggml import ggml_contender
from laq.evaluation.onnx_runtime import onnx_contender
from laq.evaluation.speed import Contender, Writer, copies_of, torch_contender
from laq.kernels import native
from laq.kernels.packing import pack
from laq.runtime.arena import Arena
from laq.runtime.calls import activation_bits
from laq.runtime.decoding import Decoder
from laq.runtime.embedding import PackedEmbedding
from laq.runtime.generate import generate, positions
from laq.runtime.linear import PackedLinear
from laq.runtime.packed import PackedWeight

GROUP_SIZE = 64
CHOICES = {"laq 2 bit": 3, "laq 3 bit": 4, "laq 4 bit": 5, "laq 8 bit": 8}
CHOICES |= {"laq trellis 2": 10, "laq trellis 3": 11, "laq trellis 4": 12}
"""Candidate format of every tile."""

MIXED = (1, 3, 4, 4, 5, 5, 5, 6, 7, 8)
"""Candidates that the tiles of a mixed matrix take, each as often: integers, 4 bits on average."""


@contextmanager
def same_threads() -> Iterator[int]:
    """Let torch use as many threads as the native kernels for a while; their number."""
    before, n_threads = torch.get_num_threads(), usable_threads()
    torch.set_num_threads(n_threads)
    try:
        yield n_threads
    finally:
        torch.set_num_threads(before)


def reading_contender(size_bytes: int | None = None) -> Contender:
    """Return what reads `size_bytes` of memory, or more than caches hold, and does nothing else."""
    size_bytes = size_bytes or speed.ROTATED_BYTES
    arena, library = Arena(), native.library()
    zeros = np.zeros(size_bytes, np.uint8)
    copies = [arena.place(zeros) for _ in range(copies_of(size_bytes))]
    words = [torch.from_numpy(copy[: size_bytes // 8 * 8]).view(torch.int64) for copy in copies]

    def bind(inputs: torch.Tensor) -> Callable[[int], object]:
        del inputs
        if library is None:
            return lambda copy: words[copy].sum()
        return lambda copy: library.read(words[copy].data_ptr(), size_bytes)

    return Contender("read", size_bytes, len(copies), bind)


def product_contenders(
    shape: tuple[int, int], *, threads: int
) -> tuple[list[Contender], Contender, dict[str, str]]:
    """Return all that can multiply by a matrix of this shape here.

    Parameters
    ----------
    shape : [n_rows, n_columns]
        Of the matrix.
    threads : int
        That share one product.

    Returns
    -------
    contenders : list of Contender
        Those that are installed and can hold this shape.
    reading : Contender
        Reads as many bytes as a matrix of 4 bits has.
    missing : dict of str
        What is not here, and the line that installs it.
    """
    contenders = [
        one for name, packed in _random_matrices(shape).items() for one in _laq_contenders(name, packed)
    ]
    of_four = next(one for one in contenders if one.name == "laq 4 bit")
    contenders += [torch_contender(shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
    missing = {}
    for name, install, makers in (
        ("onnxruntime", onnx_runtime.INSTALL, [partial(onnx_contender, shape, bits) for bits in (4, 8)]),
        ("llama.cpp", llama_cpp.INSTALL, [partial(ggml_contender, shape, kind) for kind in ggml.TYPES]),
    ):
        try:
            made = [make(threads=threads) for make in makers]
        except (ImportError, AttributeError):  # the second: a version that lacks what is used here
            missing[name] = install
        else:
            contenders += [one for one in made if one is not None]
    return contenders, reading_contender(of_four.weight_bytes), missing


def _random_matrices(shape: tuple[int, int]) -> dict[str, PackedTensor]:
    grid = TileGrid(*shape, GROUP_SIZE)
    generator = np.random.default_rng(0)
    n_tiles = grid.n_row_blocks * grid.n_groups
    mixed = generator.permutation(np.resize(np.array(MIXED, np.uint8), n_tiles))
    found = {name: random_packed(shape, choice) for name, choice in CHOICES.items()}
    return found | {"laq mixed": random_packed(shape, mixed.reshape(grid.n_row_blocks, -1))}


def random_packed(
    shape: tuple[int, int], choices: npt.NDArray[np.uint8] | int, group_size: int = GROUP_SIZE
) -> PackedTensor:
    """Return a matrix of random codes, sorted both ways, as large as a real one.

    Parameters
    ----------
    shape : [n_rows, n_columns]
        Of the matrix.
    choices : uint8 [n_row_blocks, n_groups], or int
        Candidate format of every tile.
    group_size : int
        Columns that share a scale.
    """
    generator = np.random.default_rng(0)
    grid = TileGrid(*shape, group_size)
    chosen = np.array(np.broadcast_to(choices, (grid.n_row_blocks, grid.n_groups)), np.uint8)
    levels = np.array([candidate.n_levels for candidate in CANDIDATES])[chosen]
    codes = generator.integers(0, levels.repeat(TILE_ROWS, 0).repeat(group_size, 1)).astype(np.uint8)
    bits = ZERO_POINT_BITS[TAGS[chosen]].repeat(TILE_ROWS, 0)
    zero_points = zero_point_value(generator.integers(0, 1 << bits.astype(int)).astype(np.uint8), bits)
    scales = generator.integers(-60, -40, (grid.padded_rows, grid.n_groups)).astype(np.int16)
    rows, columns = (generator.permutation(n).astype(index_dtype(n)) for n in shape)
    return pack(QTensor(grid, ScaleFormat.LOG8, chosen, codes, scales, zero_points, rows, columns))


def _laq_contenders(name: str, packed: PackedTensor) -> list[Contender]:
    """Layers as a network calls them; where there are kernels also these alone, without Python around."""
    arena, library = Arena(), native.library()
    n_copies = copies_of(packed.size_bytes)
    layers = [PackedLinear(PackedWeight(packed, memory=arena), None) for _ in range(n_copies)]
    found = [Contender(name, packed.size_bytes, n_copies, lambda inputs: lambda copy: layers[copy](inputs))]
    if library is None:
        return found

    def bind(inputs: torch.Tensor) -> Callable[[int], object]:
        n, outputs = len(inputs), torch.empty(len(inputs), packed.grid.n_rows)
        copies = [layer.packed.checked() for layer in layers]
        result, bits = native.addresses([outputs.data_ptr()]), activation_bits(n)

        def multiply(copy: int) -> torch.Tensor:
            rows = inputs.data_ptr(), native.FLOAT32, n, inputs.stride(0)
            code = library.linear(copies[copy].alone, 1, *rows, result, None, bits)
            native.raise_problem(code, name="linear")
            return outputs

        return multiply

    return [*found, Contender(f"{name}, kernel", packed.size_bytes, n_copies, bind)]


def network_writer(
    name: str, module: nn.Module, *, n_prompt: int, n_new: int, repeats: bool = True
) -> Writer:
    """Return a language model that continues a random prompt with its likeliest tokens.

    Parameters
    ----------
    name : str
        What the tables call it.
    module : nn.Module
        A causal language model of transformers.
    n_prompt, n_new : int
        Tokens to read and to write.
    repeats : bool
        Let the native kernels repeat what the model's own code did, where they can; else it runs every token.

    Raises
    ------
    RequestError
        If it has no room for so many.
    """
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "vocab_size"):
        raise RequestError(
            f"{type(module).__name__}: only language models write", hint="laq bench --matmul needs no network"
        )
    room = positions(module)
    if room is not None and n_prompt + n_new > room:
        raise RequestError(
            f"{n_prompt} tokens of prompt and {n_new} new ones: the network has room for {room}",
            hint="ask for fewer with --prompt-tokens and --tokens",
        )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, n_prompt), generator=generator)
    last: list[Decoder] = []

    def write() -> Iterator[int]:
        last[:] = [Decoder(module, max_tokens=n_prompt + n_new, repeats=repeats)]
        return generate(last[0], ids, max_new_tokens=n_new)

    def remark() -> str:
        return last[0].reason if repeats and last else ""

    return Writer(name, bytes_per_token(module), write, remark)


def bytes_per_token(module: nn.Module) -> int:
    """Return the bytes of weights that a language model reads for one token.

    Of packed weights all sections; of embeddings what one token looks up, a row block where they are packed;
    of everything else that the token meets, the whole. What attention keeps of earlier tokens is not counted.

    Parameters
    ----------
    module : nn.Module
        A causal language model of transformers.
    """
    counts: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: counts.append(_bytes_read(layer)))
        for layer in module.modules()
    ]
    try:
        with torch.no_grad():
            module(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def _bytes_read(layer: nn.Module) -> int:
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    if isinstance(layer, PackedLinear):
        own += [section for section in layer.packed.sections() if section is not None]
    if isinstance(layer, PackedEmbedding):
        grid = layer.packed.grid
        return sum(tensor.nbytes for tensor in layer.packed.buffers()) // grid.n_row_blocks
    if isinstance(layer, nn.Embedding):
        return layer.weight.nbytes // layer.num_embeddings
    return sum(tensor.nbytes for tensor in own)
