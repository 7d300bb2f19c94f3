"""One packed matrix by 1 to 512 inputs, weights streamed from memory, against torch and ONNX Runtime."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from common import save

from laq.core.formats import CANDIDATES
from laq.core.groups import TILE_ROWS, TileGrid
from laq.core.packing import CODE_BITS, PackedTensor
from laq.core.qtensor import QTensor, zero_point_value
from laq.core.scheme import ScaleFormat
from laq.kernels import native
from laq.kernels.reference import pack
from laq.runtime.arena import Arena
from laq.runtime.calls import call_linear
from laq.runtime.packed import PackedWeight

ROTATED_BYTES = 192 << 20
"""So much is read before a matrix comes again: more than the caches hold."""

CHOICE_OF_BITS = {2: 3, 3: 4, 4: 5, 8: 8}
MIXED = (3, 4, 5, 6, 7, 8)


@dataclass
class Runner:
    """Something that multiplies; `run` takes the number of the copy, `kept` keeps what it points to."""

    name: str
    weight_bytes: int
    n_copies: int
    run: Callable[[int], object]
    kept: object = None


def random_packed(shape: tuple[int, int], choices: np.ndarray | int, group_size: int = 64) -> PackedTensor:
    """Return a matrix of random codes, as large as a real one."""
    generator = np.random.default_rng(0)
    grid = TileGrid(*shape, group_size)
    tiles = (grid.n_row_blocks, grid.n_groups)
    chosen = np.array(np.broadcast_to(choices, tiles), np.uint8)
    levels = np.array([candidate.n_levels for candidate in CANDIDATES])[chosen]
    codes = generator.integers(0, levels.repeat(TILE_ROWS, 0).repeat(group_size, 1)).astype(np.uint8)
    bits = CODE_BITS[chosen].repeat(TILE_ROWS, 0)
    zero_points = zero_point_value(generator.integers(0, 1 << bits.astype(int)).astype(np.uint8), bits)
    scales = generator.integers(-60, -40, (grid.padded_rows, grid.n_groups)).astype(np.int16)
    orders = [generator.permutation(n).astype(np.uint16) for n in shape]
    return pack(QTensor(grid, ScaleFormat.LOG8, chosen, codes, scales, zero_points, *orders))


def laq_runner(name: str, packed: PackedTensor, inputs: torch.Tensor, bits: int) -> Runner:
    """Native kernels over copies in huge pages."""
    n_copies = max(2, ROTATED_BYTES // packed.size_bytes)
    arena = Arena()
    weights = [PackedWeight(packed, arena=arena) for _ in range(n_copies)]
    matrices = [native.matrices([weight.matrix()]) for weight in weights]
    return Runner(
        name, packed.size_bytes, n_copies, lambda i: call_linear(matrices[i], [None], inputs, bits), weights
    )


def torch_runner(shape: tuple[int, int], inputs: torch.Tensor, dtype: torch.dtype) -> Runner:
    """A dense linear."""
    size = shape[0] * shape[1] * dtype.itemsize
    copies = [torch.randn(shape, dtype=dtype) for _ in range(max(2, ROTATED_BYTES // size))]
    typed = inputs.to(dtype)
    name = {torch.float32: "torch fp32", torch.bfloat16: "torch bf16"}[dtype]
    return Runner(name, size, len(copies), lambda i: torch.nn.functional.linear(typed, copies[i]))


def onnx_runner(shape: tuple[int, int], inputs: torch.Tensor, bits: int, threads: int) -> Runner | None:
    """ONNX Runtime's MatMulNBits at accuracy level 4 (int8 arithmetic), if it is installed."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    n, k = shape
    block = 32
    if k % block:
        return None
    blob = block * bits // 8
    generator = np.random.default_rng(0)
    constants = {
        "b": generator.integers(0, 256, (n, k // block, blob)).astype(np.uint8),
        "s": (generator.random(n * (k // block)) * 0.01).astype(np.float32),
    }
    node = helper.make_node(
        "MatMulNBits",
        ["a", "b", "s"],
        ["y"],
        domain="com.microsoft",
        K=k,
        N=n,
        bits=bits,
        block_size=block,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow the others down
    size = sum(array.nbytes for array in constants.values())
    content = model.SerializeToString()
    sessions = [
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for _ in range(max(2, ROTATED_BYTES // size))
    ]
    array = inputs.numpy()
    return Runner(
        f"onnxruntime {bits} bit", size, len(sessions), lambda i: sessions[i].run(None, {"a": array})
    )


def time_all(runners: list[Runner], seconds: float) -> dict[str, float]:
    """Median seconds of each, run in turns so that all see the same machine."""
    times: dict[str, list[float]] = {runner.name: [] for runner in runners}
    end, turn = time.perf_counter() + seconds * len(runners), 0
    while time.perf_counter() < end or turn < 8:
        for runner in runners:
            start = time.perf_counter()
            runner.run(turn % runner.n_copies)
            times[runner.name].append(time.perf_counter() - start)
        turn += 1
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def read_runner(packed: PackedTensor) -> Runner:
    """Reading the same bytes with all threads, nothing else."""
    library = native.library()
    assert library is not None
    n_copies = max(2, ROTATED_BYTES // packed.size_bytes)
    arena = Arena()
    whole = np.zeros(packed.size_bytes, np.uint8)
    copies = [arena.copy(whole) for _ in range(n_copies)]
    addresses = [copy.ctypes.data for copy in copies]
    size = packed.size_bytes
    return Runner("read", size, n_copies, lambda i: library.read(addresses[i], size), copies)


def measure(shape: tuple[int, int], n_inputs: int, threads: int, seconds: float) -> list[dict]:
    """Return one row a runner."""
    inputs = torch.randn(n_inputs, shape[1])
    grid = TileGrid(*shape, 64)
    mixed = np.random.default_rng(0).choice(np.array(MIXED, np.uint8), (grid.n_row_blocks, grid.n_groups))
    uniform = {f"laq {bits} bit": random_packed(shape, choice) for bits, choice in CHOICE_OF_BITS.items()}
    bits = 16 if n_inputs <= 4 else 8
    runners = [laq_runner(name, packed, inputs, bits) for name, packed in uniform.items()]
    runners.append(laq_runner("laq mixed", random_packed(shape, mixed), inputs, bits))
    runners += [torch_runner(shape, inputs, dtype) for dtype in (torch.float32, torch.bfloat16)]
    runners += [runner for runner in [onnx_runner(shape, inputs, 4, threads)] if runner is not None]
    runners.append(read_runner(uniform["laq 4 bit"]))
    found = time_all(runners, seconds)
    of_four = found["laq 4 bit"]
    return [
        {
            "shape": f"{shape[0]} x {shape[1]}",
            "n_inputs": n_inputs,
            "what": runner.name,
            "us": found[runner.name] * 1e6,
            "gb_per_s": runner.weight_bytes / found[runner.name] / 1e9,
            "share_of_read": runner.weight_bytes
            / found[runner.name]
            / (runners[-1].weight_bytes / found["read"]),
            "times_laq_4_bit": found[runner.name] / of_four,
        }
        for runner in runners
    ]


def main() -> None:
    """Print one line a measurement and write bench/results/matmul.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each runner")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    library = native.library()
    if library is None:
        raise SystemExit("error: there are no native kernels here, see laq doctor")
    torch.set_num_threads(arguments.threads)
    library.set_threads(arguments.threads)
    settings = [((4096, 4096), n) for n in (1, 4, 16, 128, 512)]
    settings += [(shape, 1) for shape in ((576, 1536), (1536, 576), (4096, 11008), (11008, 4096), (16, 4096))]
    settings.append(((4096, 4090), 1))
    rows = []
    for shape, n_inputs in settings:
        found = measure(shape, n_inputs, arguments.threads, arguments.seconds)
        for row in found:
            print(
                f"{row['shape']:>13s} x {row['n_inputs']:<4d} {row['what']:18s} {row['us']:10.1f} us "
                f"{row['gb_per_s']:6.1f} GB/s {row['share_of_read']:5.2f} read {row['times_laq_4_bit']:6.2f}",
                flush=True,
            )
        rows += found
    save("matmul", rows, tier=library.tier, threads=arguments.threads)


if __name__ == "__main__":
    main()
