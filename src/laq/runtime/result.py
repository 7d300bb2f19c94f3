"""A quantized network: runs, says where the bits went and what it cost, and saves itself."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from laq.core.curve import WeightCurves
from laq.core.errors import RunError
from laq.core.formats import CANDIDATES, Palette
from laq.core.packing import StoredTensor
from laq.core.permutation import IndexArray, index_dtype
from laq.core.plan import Plan, WeightPlan
from laq.core.record import Record
from laq.core.scheme import StoredAs
from laq.io.archive import (
    archive_tensors,
    fixed_bytes,
    folder_bytes,
    open_archive,
    save_archive,
)
from laq.io.manifest import Manifest, WeightEntry
from laq.io.safetensors import RawTensor
from laq.networks.module import Network, evaluation_mode, stored_tensor
from laq.networks.tensors import SAFETENSORS_NAMES, to_raw
from laq.runtime.load import module_of
from laq.runtime.replace import packed_copy

PALETTE_CHOICES = [i for i, candidate in enumerate(CANDIDATES) if isinstance(candidate, Palette)]
SAME_OUTPUT = 0.02
"""Relative difference up to which outputs are the same: the bytes are compared exactly, but a network built
anew may use another attention kernel, or keep tables of its own more exactly than one cast in memory."""


@dataclass(frozen=True)
class Comparison:
    """A plan of the same bytes: how it did on the selection split, which decides, and on the test split."""

    label: str
    plan: Plan
    selection: Record
    test: Record


@dataclass(frozen=True)
class Result:
    """What quantization returns.

    Parameters
    ----------
    network : Network
        What was packed: the original, or what the plan's transforms made of it.
    plan : Plan
        What was decided.
    packed : mapping
        Packed weights by name.
    record : Record or None
        What was lost on the test split, once evaluated.
    comparisons : tuple of Comparison
        The requested plan and those it was held against.
    verdict : str
        One sentence: which plan was kept and why.
    provenance : mapping
        Seed, data and settings.
    """

    network: Network
    plan: Plan
    packed: Mapping[str, StoredTensor]
    record: Record | None = None
    comparisons: tuple[Comparison, ...] = ()
    verdict: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return size, loss and verdict; weights are not shown."""
        kl = "" if self.record is None else f", KL {self.record.kl_nats:.3g} nats on the test split"
        size = f"{self.plan.size_bytes} bytes, {self.plan.bpw:.2f} bits per weight"
        return f"<Result: {size}{kl}; {self.verdict or 'not evaluated'}>"

    @cached_property
    def model(self) -> nn.Module:
        """The packed network, an ordinary module of the original's class."""
        return packed_copy(self.network, self.packed)

    def manifest(self) -> Manifest:
        """Return what laq.json will say."""
        histograms = {weight.name: weight.histogram() for weight in self.plan.weights}
        plans = {weight.name: weight for weight in self.plan.weights}
        provenance = {**self.provenance, "source_hash": self.plan.source_hash, "versions": versions()}
        return Manifest(
            architecture=self.network.architecture,
            weights=tuple(
                WeightEntry(
                    w.name,
                    w.kind,
                    w.modules,
                    w.dtype,
                    w.shape,
                    plans[w.name].grid.group_size,
                    plans[w.name].column_order,
                    histograms[w.name],
                    **_stored_as(plans[w.name]),
                )
                for w in self.network.weights
            ),
            kept={kept.name: "" for kept in self.network.kept},
            column_permutations=dict.fromkeys(self.plan.column_permutations, ""),
            scale_format=self.plan.scale_format,
            scale_per=self.plan.scale_per,
            plan=self.plan.summary(),
            provenance=provenance,
            record={} if self.record is None else self.record.to_json(),
        )

    def save(self, folder: str | Path) -> Path:
        """Write the archive, open it again, compare every byte and a language model's outputs with this.

        Parameters
        ----------
        folder : str or Path
            Free, or an archive, which is replaced only when the new one is complete.

        Raises
        ------
        RequestError
            If the folder holds something that laq did not write.
        RunError
            If what was written differs from what is in memory.
        """
        path, manifest = Path(folder), self.manifest()
        kept = {k.name: to_raw(stored_tensor(self.network.module, k.name)) for k in self.network.kept}
        expected = archive_tensors(manifest, self.packed, kept)
        save_archive(
            path,
            manifest,
            packed=self.packed,
            kept=kept,
            sidecars=self.network.sidecars,
            check=lambda written: self._check_written(written, expected),
        )
        return path

    def _check_written(self, path: Path, expected: Mapping[str, RawTensor]) -> None:
        archive = open_archive(path)
        found = archive.tensors
        differing = [name for name, raw in expected.items() if not np.array_equal(found[name].data, raw.data)]
        if differing:
            names = ", ".join(differing[:8])
            raise RunError(f"what was written differs from memory: {names}", hint="check the disk")
        if self.network.architecture == "transformers":
            ids = torch.arange(8)[None] % archive.manifest.weights[0].shape[0]
            with torch.inference_mode(), evaluation_mode(self.model):
                before, after = (m(input_ids=ids).logits for m in (self.model, module_of(archive)))
            if float((after - before).norm()) > SAME_OUTPUT * float(before.norm()):
                raise RunError(
                    "outputs of the reopened archive differ from those in memory",
                    hint="its config does not describe it: use save_pretrained, quantize that folder",
                )
        size_bytes = folder_bytes(path)
        if size_bytes > self.plan.budget_bytes:
            raise RunError(f"the archive has {size_bytes} bytes, over the budget of {self.plan.budget_bytes}")

    def updated(self, **changes: Any) -> Result:
        """Return this result with other fields; the packed weights and the model are shared."""
        result = replace(self, **changes)
        if "model" in self.__dict__:
            result.__dict__["model"] = self.model
        return result


def _stored_as(weight: WeightPlan) -> dict[str, Any]:
    """What is said of a weight that is more than tiles, or none."""
    amount = {} if weight.amount is None else weight.amount.to_json()
    return amount if weight.product is None else amount | {"product": weight.product.name}


def archive_fixed_bytes(
    network: Network,
    weights: Sequence[WeightCurves],
    column_permutations: Mapping[str, IndexArray],
    stored: StoredAs,
) -> int:
    """Return the bytes of an archive besides its weights' own sections.

    Parameters
    ----------
    network : Network
        Its kept tensors and its config and tokenizer files are counted.
    weights : sequence of WeightCurves
        All ways of storing the packed weights: the finest groups and all formats are counted.
    column_permutations : mapping
        Shared orders of columns.
    stored : StoredAs
        How scales are stored, and what they serve.
    """
    ways: dict[str, list[WeightCurves]] = {}
    for way in weights:
        ways.setdefault(way.name, []).append(way)
    entries = tuple(
        WeightEntry(
            w.name,
            w.kind,
            w.modules,
            w.dtype,
            w.shape,
            min(way.grid.group_size for way in ways[w.name]),
            ways[w.name][0].column_order,
            _measured_formats(ways[w.name]),
        )
        for w in network.weights
    )
    manifest = Manifest(
        architecture=network.architecture,
        weights=entries,
        kept={kept.name: "" for kept in network.kept},
        column_permutations=dict.fromkeys(column_permutations, ""),
        scale_format=stored.scale_format,
        scale_per=stored.scale_per,
        plan={},
        provenance={},
        record={},
    )
    kept = [(k.name, SAFETENSORS_NAMES[getattr(torch, k.dtype)], k.shape) for k in network.kept]
    columns = [
        (key, "U16" if index_dtype(len(o)).itemsize == 2 else "U32", (len(o),))
        for key, o in column_permutations.items()
    ]
    learned = dict.fromkeys(way.name for way in weights if np.isfinite(way.loss_nats[PALETTE_CHOICES]).any())
    return fixed_bytes(
        manifest,
        kept=kept,
        column_specs=columns,
        palettes=learned,
        sidecar_bytes=sidecar_bytes(network),
    )


def _measured_formats(ways: Sequence[WeightCurves]) -> dict[str, int]:
    """Formats that a plan may name, of no tiles yet."""
    known = np.any([np.isfinite(way.loss_nats).any((1, 2)) for way in ways], 0)
    return {candidate.name: 0 for candidate, its in zip(CANDIDATES, known, strict=True) if its}


def sidecar_bytes(network: Network) -> int:
    """Return the bytes of the source's config and tokenizer files as an archive holds them."""
    if network.sidecars is None:
        return 0
    with tempfile.TemporaryDirectory(prefix="laq-") as folder:
        network.sidecars(Path(folder))
        return folder_bytes(Path(folder))


def versions() -> dict[str, str]:
    """Return the versions that shape the bytes."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
    for name in ("laq", "torch", "numpy", "transformers", "gguf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
