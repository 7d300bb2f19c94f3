"""Against ggml's types with importance weights, and uniform 4 bits by gptq: linears, everything counted.

ggml comes with llama-cpp-python. Its types want rows of whole blocks of 256: shorter ones are filled with
zeros, which are not counted, so that ggml pays for nothing that it would not need. Its importance weights are
the mean squared inputs of the same calibration tokens.
"""

from __future__ import annotations

import copy
import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import BenchSplits, linears, measure, parser, run, save
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from laq.core.curve import Curves
from laq.core.importance import importance_of
from laq.core.stats import Stats
from laq.networks import Network
from laq.steps import records

TYPES = ("Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K")
BLOCK = 256


def library() -> ctypes.CDLL:
    """The part of ggml that quantizes."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install llama-cpp-python")
    folder = Path(spec.origin).parent / "lib"
    found = ctypes.CDLL(
        str(next(path for path in folder.glob("libggml-base.*") if path.suffix in (".so", ".dylib")))
    )
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]
    return found


def quantized(
    ggml: ctypes.CDLL, weight: torch.Tensor, importance: np.ndarray, kind: GGMLQuantizationType
) -> torch.Tensor:
    """Round a weight [n_rows, n_columns] to a type of ggml and return its values."""
    n_rows, n_columns = weight.shape
    padded = -(-n_columns // BLOCK) * BLOCK
    values = np.zeros((n_rows, padded), np.float32)
    values[:, :n_columns] = weight.float().numpy()
    weights = np.zeros(padded, np.float32)
    weights[:n_columns] = importance
    block_size, type_size = GGML_QUANT_SIZES[kind]
    stored = np.empty((n_rows, padded // block_size * type_size), np.uint8)
    addresses = values.ctypes.data, stored.ctypes.data
    size = ggml.ggml_quantize_chunk(int(kind), *addresses, 0, n_rows, padded, weights.ctypes.data)
    assert size == stored.nbytes
    return torch.from_numpy(dequantize(stored, kind)[:, :n_columns].copy())


def with_type(
    ggml: ctypes.CDLL, network: Network, stats: Stats, kind: GGMLQuantizationType
) -> torch.nn.Module:
    """A copy of the network whose linears hold what the type keeps of them."""
    ggml.ggml_quantize_init(int(kind))

    def values(name: str) -> torch.Tensor:
        diagonal = np.ascontiguousarray(np.diagonal(importance_of(stats, name).hessian))
        return quantized(ggml, network.weight(name), diagonal, kind)

    names = [weight.name for weight in network.weights]
    module = copy.deepcopy(network.module)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads, torch.no_grad():
        for name, found in zip(names, threads.map(values, names), strict=True):
            module.get_parameter(name).copy_(found)
    return module


def ggml_row(ggml: ctypes.CDLL, network: Network, stats: Stats, splits: BenchSplits, name: str) -> dict:
    """Bits per weight and KL of one type."""
    kind = GGMLQuantizationType[name]
    block_size, type_size = GGML_QUANT_SIZES[kind]
    bpw = 8 * type_size / block_size
    module = with_type(ggml, network, stats, kind)
    kl = records(network, {"": (module, 0)}, splits.test, split="test")[""].kl_nats
    print(f"{bpw:.4f} bpw  ggml {name:8s} KL {kl:.4f}", flush=True)
    return {"method": f"ggml {name}", "bpw": bpw, "kl_nats": kl}


def counted(curves: Curves) -> Curves:
    """Price the linears alone, with tables and orders: all that is stored of them."""
    orders = sum(order.nbytes for order in curves.column_permutations.values())
    n = sum(weight.grid.n_rows * weight.grid.n_columns for weight in curves.weights)
    return replace(curves, fixed_bytes=orders, original_bytes=1 << 60, n_params=n)


def main() -> None:
    """Print one line a setting and write bench/results/ggml_types.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work, n_calibration=64)
    curves, ggml = counted(measure(network, stats)), library()
    rows = []
    for name in TYPES:
        rows.append(ggml_row(ggml, network, stats, splits, name))
        found = run(network, stats, curves, splits, bpw=rows[-1]["bpw"], unit="tile", on=("test",))
        rows.append({"method": "laq"} | found)
    for bpw, unit, formats in ((4.3, "network", "integer"), (3.3, "tile", "all"), (3.44, "tile", "all")):
        found = run(network, stats, curves, splits, bpw=bpw, unit=unit, formats=formats, on=("test",))
        rows.append({"method": "gptq, 4 bits everywhere" if unit == "network" else "laq"} | found)
    save("ggml_types", rows, text=splits.source)


if __name__ == "__main__":
    main()
