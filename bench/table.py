"""Write bench/RESULTS.md from the JSON files in bench/results; never computes anything else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
COMMANDS = {
    "ladder": "bench/ladder.py --text TEXT",
    "ranges": "bench/ranges.py --text TEXT",
    "allocators": "bench/allocators.py --text TEXT",
    "quality": "bench/quality.py --text TEXT",
    "rounding": "bench/rounding.py --text TEXT",
    "transforms": "bench/transforms.py --text TEXT",
    "formats": "bench/formats.py --text TEXT",
    "low_rank": "bench/low_rank.py --text TEXT",
    "outliers": "bench/outliers.py --text TEXT",
    "effort": "bench/effort.py --text TEXT --bpw 2.4 3.2",
    "methods": "bench/methods.py --text TEXT",
    "fp8": "bench/fp8.py",
    "squared_errors": "bench/squared_errors.py",
    "sequential": "bench/sequential.py --text TEXT",
    "whole_model": "bench/whole_model.py --text TEXT",
    "other_networks": "bench/other_networks.py --text TEXT",
    "ggml_types": "bench/ggml_types.py --text TEXT",
    "shrinkage": "bench/shrinkage.py --text TEXT",
    "calibration_memory": "bench/calibration_memory.py",
    "prediction": "bench/prediction.py --text TEXT",
    "sensitivity": "bench/sensitivity.py --text TEXT",
    "cost": "bench/cost.py",
    "determinism": "bench/determinism.py",
    "matmul": "bench/matmul.py",
    "decode": "bench/decode.py ARCHIVE --gguf FILE",
    "demo": "make demo",
}


def main() -> None:
    """Write the tables."""
    parts = (
        [(HERE / "NOTES.md").read_text(encoding="utf-8")] if (HERE / "NOTES.md").exists() else ["# Results\n"]
    )
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((HERE / "results").glob("*.json"))
    }
    for name, content in found.items():
        machine = content["machine"]
        where = f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"
        text = f"; text: {content['text']}" if "text" in content else ""
        command = f"`.venv/bin/python {COMMANDS.get(name, name)}` on {where}{text}"
        parts.append(f"## {name}\n\n{command}\n\n{_table(content['rows'])}")
    kl_rows = [row for name in ("ladder", "whole_model") if name in found for row in found[name]["rows"]]
    if kl_rows:
        parts.append(_prediction(kl_rows))
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


def _table(rows: list[dict]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row if row[key] is not None))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _prediction(rows: list[dict]) -> str:
    """Do the curves rank plans, and by what factor are they off? Over all runs."""
    predicted = np.array([row["predicted_nats"] for row in rows])
    measured = np.array([row["kl_nats"] for row in rows])
    ranks = [values.argsort().argsort() for values in (predicted, measured)]
    ratios = measured / predicted
    table = [
        {
            "run": f"{row['bpw']} bpw, {row['quantizer']}, {row['unit']} {row.get('control', '')}".strip(),
            "predicted": row["predicted_nats"],
            "measured": row["kl_nats"],
            "measured / predicted": ratio,
        }
        for row, ratio in zip(rows, ratios.tolist(), strict=True)
    ]
    correlation = np.corrcoef(*ranks)[0, 1]
    return (
        f"## predicted against measured KL\n\nOver the {len(rows)} runs of ladder and whole_model: "
        f"rank correlation {correlation:.3f}; measured / predicted: median {np.median(ratios):.2f}, "
        f"from {ratios.min():.2f} to {ratios.max():.2f}.\n\n{_table(table)}"
    )


if __name__ == "__main__":
    main()
