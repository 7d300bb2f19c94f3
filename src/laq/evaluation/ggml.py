"""ggml's products, to be held against: the C library inside of llama-cpp-python."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from laq.evaluation.speed import Contender, copies_of

TYPES = {"Q4_0": 2, "Q4_K": 12, "Q6_K": 14, "Q8_0": 8}
"""enum ggml_type of ggml.h."""

FLOAT32, CPU = 0, 0
"""GGML_TYPE_F32, GGML_BACKEND_DEVICE_TYPE_CPU."""

REPACKED = b"ggml_backend_dev_get_extra_bufts"


def ggml_contender(shape: tuple[int, int], name: str, *, threads: int) -> Contender | None:
    """Return ggml's product with a random matrix, in the layout that llama.cpp chooses on this machine.

    Parameters
    ----------
    shape : [n_rows, n_columns]
        Of the matrix.
    name : str
        A key of `TYPES`.
    threads : int
        That share one product.

    Returns
    -------
    Contender or None
        None if the type cannot hold rows of this length.

    Raises
    ------
    ImportError
        If llama-cpp-python is not installed.
    AttributeError
        If its ggml lacks a function.
    """
    ggml = _Ggml(threads)
    if shape[1] % ggml.call("ggml_blck_size", TYPES[name]):
        return None
    codes = ggml.quantized(shape, TYPES[name])
    weights = [ggml.weight(shape, TYPES[name], codes) for _ in range(copies_of(codes.nbytes))]

    def bind(inputs: torch.Tensor) -> Callable[[int], object]:
        graphs = ggml.products(weights, inputs.numpy())
        return lambda copy: ggml.compute(graphs[copy])

    return Contender(f"ggml {name}", codes.nbytes, len(weights), bind)


class _Init(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_P, _N, _INT, _INT64, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64, ctypes.c_char_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ggml_init": (_P, _Init),
    "ggml_free": (None, _P),
    "ggml_tensor_overhead": (_N,),
    "ggml_graph_overhead": (_N,),
    "ggml_blck_size": (_INT64, _INT),
    "ggml_row_size": (_N, _INT, _INT64),
    "ggml_quantize_chunk": (_N, _INT, _P, _P, _INT64, _INT64, _INT64, _P),
    "ggml_new_tensor_2d": (_P, _P, _INT, _INT64, _INT64),
    "ggml_mul_mat": (_P, _P, _P, _P),
    "ggml_new_graph": (_P, _P),
    "ggml_build_forward_expand": (None, _P, _P),
    "ggml_gallocr_new": (_P, _P),
    "ggml_gallocr_alloc_graph": (ctypes.c_bool, _P, _P),
    "ggml_gallocr_free": (None, _P),
    "ggml_backend_dev_by_type": (_P, _INT),
    "ggml_backend_dev_init": (_P, _P, _TEXT),
    "ggml_backend_dev_backend_reg": (_P, _P),
    "ggml_backend_dev_buffer_type": (_P, _P),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, _P, _P),
    "ggml_backend_reg_get_proc_address": (_P, _P, _TEXT),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, _P, _P),
    "ggml_backend_buffer_free": (None, _P),
    "ggml_backend_free": (None, _P),
    "ggml_backend_tensor_set": (None, _P, _P, _N, _N),
    "ggml_backend_graph_compute": (_INT, _P, _P),
}
"""Result, then arguments, of functions of ggml.h, ggml-alloc.h and ggml-backend.h."""


class _Ggml:
    """The functions that a product needs, on the CPU; what they make is freed with this object."""

    def __init__(self, threads: int) -> None:
        from llama_cpp._ggml import libggml

        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
        self._functions = {name: getattr(libggml, name) for name in _SIGNATURES}
        for name, (result, *arguments) in _SIGNATURES.items():
            self._functions[name].restype, self._functions[name].argtypes = result, arguments
        device = self.call("ggml_backend_dev_by_type", CPU)
        registry = self.call("ggml_backend_dev_backend_reg", device)
        self._device, self._plain = device, self.call("ggml_backend_dev_buffer_type", device)
        self._backend = self._owned("ggml_backend_free", self.call("ggml_backend_dev_init", device, None))
        find = "ggml_backend_reg_get_proc_address"
        set_threads = ctypes.CFUNCTYPE(None, _P, _INT)(
            self.call(find, registry, b"ggml_backend_set_n_threads")
        )
        set_threads(self._backend, threads)
        extra = self.call(find, registry, REPACKED)
        self._layouts: list[int] = []
        if extra:
            found = ctypes.CFUNCTYPE(ctypes.POINTER(_P), _P)(extra)(device)
            while found and found[len(self._layouts)]:
                self._layouts.append(found[len(self._layouts)])

    def call(self, name: str, *arguments: object) -> Any:
        return self._functions[name](*arguments)

    def _owned(self, free: str, pointer: int) -> int:
        weakref.finalize(self, self._functions[free], pointer)
        return pointer

    def _context(self, n_tensors: int, *, n_graphs: int = 0) -> int:
        size = n_tensors * self.call("ggml_tensor_overhead") + n_graphs * self.call("ggml_graph_overhead")
        return self._owned("ggml_free", self.call("ggml_init", _Init(mem_size=size, no_alloc=True)))

    def quantized(self, shape: tuple[int, int], code: int) -> npt.NDArray[np.uint8]:
        """Random weights as ggml packs them; uint8 [n]."""
        values = np.random.default_rng(0).standard_normal(shape, np.float32)
        packed = np.empty(shape[0] * self.call("ggml_row_size", code, shape[1]), np.uint8)
        addresses = values.ctypes.data, packed.ctypes.data
        self.call("ggml_quantize_chunk", code, *addresses, 0, *shape, None)
        return packed

    def weight(self, shape: tuple[int, int], code: int, packed: npt.NDArray[np.uint8]) -> int:
        """A copy of the weight, repacked if ggml has a faster layout of its type for this machine."""
        for layout in (*self._layouts, self._plain):
            context = self._context(4)
            tensor: int = self.call("ggml_new_tensor_2d", context, code, shape[1], shape[0])
            buffer = self.call("ggml_backend_alloc_ctx_tensors_from_buft", context, layout)
            self._owned("ggml_backend_buffer_free", buffer)
            inputs = self.call("ggml_new_tensor_2d", context, FLOAT32, shape[1], 1)
            product = self.call("ggml_mul_mat", context, tensor, inputs)
            if self.call("ggml_backend_dev_supports_op", self._device, product):
                break
        self.call("ggml_backend_tensor_set", tensor, packed.ctypes.data, 0, packed.nbytes)
        return tensor

    def products(self, weights: list[int], inputs: npt.NDArray[np.float32]) -> list[int]:
        """A graph for each copy of the weight; they share the memory of inputs and outputs."""
        shared = self._owned("ggml_gallocr_free", self.call("ggml_gallocr_new", self._plain))
        graphs = []
        for weight in weights:
            context = self._context(4, n_graphs=1)
            given = self.call("ggml_new_tensor_2d", context, FLOAT32, inputs.shape[1], len(inputs))
            graph: int = self.call("ggml_new_graph", context)
            product = self.call("ggml_mul_mat", context, weight, given)
            self.call("ggml_build_forward_expand", graph, product)
            self.call("ggml_gallocr_alloc_graph", shared, graph)
            self.call("ggml_backend_tensor_set", given, inputs.ctypes.data, 0, inputs.nbytes)
            graphs.append(graph)
        return graphs

    def compute(self, graph: int) -> None:
        self.call("ggml_backend_graph_compute", self._backend, graph)
