"""ONNX Runtime's product of packed weights, to be held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from laq.evaluation.speed import Contender, copies_of

INSTALL = "pip install onnx onnxruntime"
BLOCK_SIZE = 32
INT8_ARITHMETIC = 4
"""Accuracy level: the fastest one; level 0 multiplies 8 bits 140 times slower."""


def onnx_contender(shape: tuple[int, int], bits: int, *, threads: int) -> Contender | None:
    """Return MatMulNBits of random codes.

    Parameters
    ----------
    shape : [n_rows, n_columns]
        Of the matrix.
    bits : int
        Width of the codes, 4 or 8.
    threads : int
        That share one product.

    Returns
    -------
    Contender or None
        None if a row is not a whole number of blocks.

    Raises
    ------
    ImportError
        If onnx or onnxruntime is not installed.
    """
    import onnxruntime

    if shape[1] % BLOCK_SIZE:
        return None
    content, size = _model(shape, bits)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow the others down
    sessions = [
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for _ in range(copies_of(size))
    ]

    def bind(inputs: torch.Tensor) -> Callable[[int], object]:
        fed = {"a": inputs.numpy()}
        return lambda copy: sessions[copy].run(None, fed)

    return Contender(f"onnxruntime {bits} bit", size, len(sessions), bind)


def _model(shape: tuple[int, int], bits: int) -> tuple[bytes, int]:
    """A graph of one product, and the bytes of its weight."""
    from onnx import TensorProto, helper, numpy_helper

    n_rows, n_columns = shape
    generator = np.random.default_rng(0)
    n_blocks = n_columns // BLOCK_SIZE
    constants: dict[str, npt.NDArray[Any]] = {
        "b": generator.integers(0, 256, (n_rows, n_blocks, BLOCK_SIZE * bits // 8)).astype(np.uint8),
        "s": (generator.random(n_rows * n_blocks) * 0.01).astype(np.float32),
    }
    sizes = {"K": n_columns, "N": n_rows, "bits": bits, "block_size": BLOCK_SIZE}
    node = helper.make_node(
        "MatMulNBits",
        ["a", *constants],
        ["y"],
        domain="com.microsoft",
        accuracy_level=INT8_ARITHMETIC,
        **sizes,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["m", n_columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n_rows])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    content: bytes = model.SerializeToString()
    return content, sum(array.nbytes for array in constants.values())
