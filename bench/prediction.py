"""Where does the predicted loss go wrong? Errors scaled down, one part at a time, seen and unseen text."""

from __future__ import annotations

import copy

import numpy as np
import torch
from common import (
    linears,
    linears_only,
    measure,
    parser,
    save,
    without_orders,
)

from laq.core.target import Unit
from laq.evaluation.divergence import compare
from laq.runtime.linear import PackedLinear
from laq.steps import allocate, apply_all

BPW = 3.2
FRACTIONS = (0.125, 0.5, 1.0)


def main() -> None:
    """Print one line a setting and write bench/results/prediction.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work)
    curves = linears_only(measure(network, stats))
    parts = {"calibration": splits.calibration[::4], "selection": splits.selection}
    module = copy.deepcopy(network.module)
    rows: list[dict] = []

    def kl(changed: dict[str, torch.Tensor], part: str) -> float:
        with torch.no_grad():
            for name, change in changed.items():
                module.get_parameter(name).copy_(network.weight(name) + change)
        (found,) = compare(network.module, [module], parts[part], label=part)
        with torch.no_grad():
            for name in changed:
                module.get_parameter(name).copy_(network.weight(name))
        return found.kl_nats

    for unit in ("tile", "tensor", "network"):
        own = without_orders(curves, Unit(unit))
        plan = allocate(own, size=int(BPW * own.n_params / 8), unit=unit)
        (result,) = apply_all(network, [plan], stats)
        errors = {
            f"{path}.weight": child.packed.dequantize() - network.weight(f"{path}.weight")
            for path, child in result.model.named_modules()
            if isinstance(child, PackedLinear)
        }
        predicted = {
            weight.name: float(
                np.take_along_axis(losses.loss_nats, weight.choices[None].astype(int), 0).sum()
            )
            for weight, losses in zip(plan.weights, curves.weights, strict=True)
        }
        for fraction in FRACTIONS:
            scaled = {name: fraction * error for name, error in errors.items()}
            row = {
                "unit": unit,
                "part": "all",
                "fraction_of_error": fraction,
                "predicted": plan.predicted_loss_nats,
            }
            rows.append(row | {f"kl_{part}": kl(scaled, part) / fraction**2 for part in parts})
            print(rows[-1], flush=True)
        if unit != "tile":
            continue
        for role in sorted({name.split(".")[-2] for name in errors}):
            mine = {name: error for name, error in errors.items() if f".{role}." in name}
            row = {"unit": unit, "part": role, "fraction_of_error": 1.0}
            row |= {
                "predicted": sum(predicted[name] for name in mine),
                "kl_calibration": kl(mine, "calibration"),
            }
            rows.append(row)
            print(row, flush=True)
    save("prediction", rows, text=splits.source)


if __name__ == "__main__":
    main()
