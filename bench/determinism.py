"""Same seed and threads twice: identical bytes? Other threads: how many codes differ, and both KL."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import parser, save, smollm2_path

from laq.io.archive import Archive, open_archive
from laq.kernels.reference import unpack_tiles


def main() -> None:
    """Quantize three times in processes of their own and write bench/results/determinism.json."""
    parser(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [_quantize(Path(folder) / name, n) for name, n in (("first", 2), ("second", 2), ("single", 1))]
        archives = [open_archive(run) for run in runs]
        row = {
            "identical_files_same_threads": _hash(runs[0]) == _hash(runs[1]),
            "tiles_with_other_width": _different_widths(archives[0], archives[2]),
            "n_tiles": sum(entry.grid.n_tiles for entry in archives[0].manifest.weights),
            "codes_that_differ": _different_codes(archives[0], archives[2]),
            "kl_nats_2_threads": archives[0].manifest.record["kl_nats"],
            "kl_nats_1_thread": archives[2].manifest.record["kl_nats"],
        }
    print(json.dumps(row, indent=1))
    save("determinism", [row])


def _quantize(out: Path, threads: int) -> Path:
    code = (
        f"import torch, laq; torch.set_num_threads({threads});"
        f"laq.quantize({str(smollm2_path())!r}, bpw=4.0, tokens=4096, compare=False).save({str(out)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return out


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _different_widths(first: Archive, second: Archive) -> int:
    n = 0
    for entry in first.manifest.weights:
        a, b = first.packed(entry), second.packed(entry)
        n += int((_width_map(a) != _width_map(b)).sum())
    return n


def _width_map(packed) -> np.ndarray:
    from laq.core.packing import tile_row_blocks

    widths = np.zeros((packed.grid.n_row_blocks, packed.grid.n_groups), np.uint8)
    widths[tile_row_blocks(packed), packed.groups] = packed.bits
    return widths


def _different_codes(first: Archive, second: Archive) -> float:
    """Share of codes that differ among weights whose tables agree."""
    differing = total = 0
    for entry in first.manifest.weights:
        a, b = first.packed(entry), second.packed(entry)
        same_order = all(
            np.array_equal(x, y)
            for x, y in ((a.bits, b.bits), (a.groups, b.groups), (a.row_permutation, b.row_permutation))
        )
        if same_order:
            differing += int((unpack_tiles(a) != unpack_tiles(b)).sum())
            total += len(a.bits) * a.grid.tile_elements
    return differing / max(total, 1)


if __name__ == "__main__":
    main()
