"""laq bench: how fast an archive writes, and how fast packed matrices are multiplied."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laq.cli.options import AsJson, Debug, Quiet
from laq.cli.output import running
from laq.core.errors import RequestError

if TYPE_CHECKING:
    from rich.table import Table

    from laq.evaluation.speed import Writer

MAX_SIZE = 1 << 20

OptionalArchive = Annotated[
    Path | None, typer.Argument(metavar="OUT", help="Folder that `laq quantize` wrote.", show_default=False)
]
Matmul = Annotated[bool, typer.Option("--matmul", help="Time products with single matrices; needs no OUT.")]
Reference = Annotated[
    str | None,
    typer.Option("--reference", metavar="MODEL", help="Time the original too, in bfloat16 and float32."),
]
Against = Annotated[
    Path | None,
    typer.Option("--against", metavar="FILE", help="Time a .gguf file too; needs llama-cpp-python."),
]
PromptTokens = Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens to read.")]
NewTokens = Annotated[int, typer.Option("--tokens", min=2, help="Tokens to write.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Texts of each network, in turns.")]
Shape = Annotated[str, typer.Option("--shape", metavar="ROWSxCOLUMNS", help="Size of the matrices.")]
Inputs = Annotated[str, typer.Option("--inputs", metavar="N,N,...", help="Numbers of inputs.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.0, help="Time for each matrix and number.")]


def bench(
    out_folder: OptionalArchive = None,
    matmul: Matmul = False,
    reference: Reference = None,
    against: Against = None,
    prompt_tokens: PromptTokens = 256,
    tokens: NewTokens = 48,
    rounds: Rounds = 4,
    shape: Shape = "4096x4096",
    inputs: Inputs = "1,4,16,128",
    seconds: Seconds = 1.0,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast an archive writes.

    Prints tokens a second, bytes read for a token, and the share of the machine's read bandwidth.
    With --matmul: single products of every width, against torch and, where they are installed, ONNX Runtime
    and llama.cpp. All take turns; times are medians.
    """
    may_download = reference is not None and not Path(reference).exists()
    with running(debug=debug, as_json=as_json, quiet=quiet, may_download=may_download) as out:
        if out_folder is None and not matmul:
            raise RequestError("nothing to measure", hint="give an archive, or --matmul")
        if out_folder is None and (reference is not None or against is not None):
            raise RequestError("--reference and --against need an archive", hint="give the archive too")
        sizes, numbers = _sizes(shape), _numbers(inputs)

        from laq.benchmark import same_threads
        from laq.kernels import native

        status = native.status()
        content: dict[str, Any] = {"kernels": asdict(status)}
        parts: list[Table | str] = []
        with same_threads() as threads:
            content["threads"] = threads
            if out_folder is not None:
                writers = _writers(
                    out_folder, reference, against, n_prompt=prompt_tokens, n_new=tokens, threads=threads
                )
                content |= _texts(writers, n_prompt=prompt_tokens, rounds=rounds)
                parts += _text_parts(
                    content, f"{out_folder}: {prompt_tokens} tokens read, {tokens} written, in turns"
                )
            if matmul:
                content |= _products(sizes, numbers, seconds=seconds, threads=threads)
                parts += _product_parts(content, f"{shape}: microseconds for so many inputs")
        ran = status.tier or f"none, computing in torch: {status.reason}"
        out.show(content, *parts, f"threads: {content['threads']}; kernels: {ran}")


def _sizes(shape: str) -> tuple[int, int]:
    try:
        n_rows, n_columns = (int(size) for size in shape.split("x"))
    except ValueError:
        n_rows = n_columns = 0
    if not (0 < n_rows <= MAX_SIZE and 0 < n_columns <= MAX_SIZE):
        hint = f"for example 4096x11008; at most {MAX_SIZE} each"
        raise RequestError(f"--shape {shape}: not the size of a matrix", hint=hint)
    return n_rows, n_columns


def _numbers(inputs: str) -> list[int]:
    try:
        numbers = [int(number) for number in inputs.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise RequestError(f"--inputs {inputs}: not a list of numbers", hint="for example 1,4,16")
    return numbers


def _writers(
    folder: Path, reference: str | None, against: Path | None, *, n_prompt: int, n_new: int, threads: int
) -> list[Writer]:
    """The archive, and what it is held against; what is refused soonest comes first."""
    import torch

    from laq.benchmark import network_writer
    from laq.cli.loading import opened_reference
    from laq.evaluation.llama_cpp import gguf_writer
    from laq.io.archive import open_archive
    from laq.resources import check_memory
    from laq.runtime.load import load

    archive = open_archive(folder)
    if archive.manifest.architecture != "transformers":
        raise RequestError(
            f"{folder}: was made from a module in memory, which writes no text",
            hint="laq bench --matmul needs no network",
        )
    others = []
    if against is not None:
        others.append(gguf_writer(against, n_prompt=n_prompt, n_new=n_new, threads=threads))
    writer = partial(network_writer, n_prompt=n_prompt, n_new=n_new)
    writers = [writer("laq", load(folder))]
    if reference is not None:
        network = opened_reference(reference, archive)
        check_memory(network.source, 6 * network.n_params)  # a copy of 4 and one of 2 bytes
        for name, dtype in (("torch bf16", torch.bfloat16), ("torch fp32", torch.float32)):
            module = copy.deepcopy(network.module).to(dtype)
            writers.append(writer(name, module, repeats=False))
    return writers + others


def _texts(writers: Sequence[Writer], *, n_prompt: int, rounds: int) -> dict[str, Any]:
    from laq.benchmark import reading_contender
    from laq.evaluation.speed import text_speeds

    speeds, read_bytes_per_s = text_speeds(writers, reading_contender(), n_prompt=n_prompt, rounds=rounds)
    return {"read_bytes_per_s": read_bytes_per_s, "networks": [asdict(speed) for speed in speeds]}


def _text_parts(content: dict[str, Any], title: str) -> list[Table | str]:
    from laq.cli.tables import mega, table_of

    rows = [
        (
            speed["name"],
            f"{speed['prefill_tokens_per_s']:.0f}",
            f"{speed['decode_tokens_per_s']:.1f}",
            mega(speed["bytes_per_token"]),
            f"{speed['bytes_per_token'] * speed['decode_tokens_per_s'] / 1e9:.2f}",
            f"{100 * speed['share_of_read']:.0f} %",
        )
        for speed in content["networks"]
    ]
    heads = ["", ">tokens/s, prompt", ">tokens/s, new", ">MB for each", ">GB/s", ">of bandwidth"]
    rate = content["read_bytes_per_s"] / 1e9
    notes = [
        f"{speed['name']}: the model's own code wrote every token: {speed['remark']}"
        for speed in content["networks"]
        if speed["remark"]
    ]
    return [table_of(title, heads, rows), *notes, f"read bandwidth of this machine: {rate:.1f} GB/s"]


def _products(
    shape: tuple[int, int], numbers: Sequence[int], *, seconds: float, threads: int
) -> dict[str, Any]:
    import torch

    from laq.benchmark import product_contenders
    from laq.core.progress import track
    from laq.evaluation.speed import product_speeds

    contenders, reading, missing = product_contenders(shape, threads=threads)
    products = []
    for n in track(numbers, label="multiplying in turns", total=len(numbers)):
        inputs = torch.randn((n, shape[1]), generator=torch.Generator().manual_seed(n))
        speeds = product_speeds(contenders, reading, inputs, seconds=seconds)
        products += [asdict(speed) for speed in speeds]
    return {"shape": shape, "products": products, "missing": missing}


def _product_parts(content: dict[str, Any], title: str) -> list[Table | str]:
    from laq.cli.tables import mega, table_of

    by_name: dict[str, list[dict[str, Any]]] = {}
    for product in content["products"]:
        by_name.setdefault(product["name"], []).append(product)
    rows = [
        (
            name,
            mega(found[0]["weight_bytes"]),
            *(f"{1e6 * product['time_s']:.0f}" for product in found),
            f"{found[0]['weight_bytes'] / found[0]['time_s'] / 1e9:.1f}",
            f"{100 * found[0]['share_of_read']:.0f} %",
        )
        for name, found in by_name.items()
    ]
    numbers = [product["n_inputs"] for product in next(iter(by_name.values()))]
    heads = ["", ">MB", *(f">{n}" for n in numbers), f">GB/s, {numbers[0]}", f">of bandwidth, {numbers[0]}"]
    notes = [f"without {name}: {install}" for name, install in content["missing"].items()]
    return [table_of(title, heads, rows), *notes]
