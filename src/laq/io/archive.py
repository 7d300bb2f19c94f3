"""The archive: a folder of safetensors with packed bytes, laq.json, and the source's other files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.correction import Amount, Correction
from laq.core.errors import FormatError
from laq.core.formats.table import PALETTE_BYTES, PALETTE_TAG, TRITS
from laq.core.formats.trellis import TAG
from laq.core.outliers import Outliers
from laq.core.packing import PackedTensor, SectionSpec, StoredTensor, check_packed, section_specs
from laq.core.permutation import IndexArray, index_dtype
from laq.core.product import ProductCode, ProductTensor, product_code, product_problems, product_sections
from laq.core.progress import track
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.core.storage import FolderKind, replaced_folder
from laq.io.manifest import (
    AMOUNT_RESERVE,
    MANIFEST,
    OPTIONAL,
    PRODUCT_RESERVE,
    Manifest,
    WeightEntry,
    manifest_reserve_bytes,
    padded,
    read_manifest,
)
from laq.io.safetensors import RawTensor, file_size_bytes, open_tensors, write_tensors
from laq.io.safetensors_header import DTYPES

SCALES_VERSION = {ScaleFormat.LOG4: 3, ScaleFormat.E8M0: 4}
"""The first version of the scale formats that were not always there."""

SHARD_BYTES = 4 << 30
SHARD_OVERHEAD = 512
METADATA = {"format": "laq"}

TensorSpec = tuple[str, str, tuple[int, ...]]
"""Name, safetensors dtype and shape."""

SIDECAR_PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.model",
)
"""The source's other files: config, generation config, tokenizer."""

ARCHIVE_FOLDER = FolderKind(
    MANIFEST, ("packed-*.safetensors", *SIDECAR_PATTERNS, "additional_chat_templates")
)


@dataclass(frozen=True, slots=True)
class Archive:
    """An opened archive: tensors are memory-mapped until they are used."""

    folder: Path
    manifest: Manifest
    tensors: Mapping[str, RawTensor]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files in the folder."""
        return folder_bytes(self.folder)

    def packed(self, entry: WeightEntry) -> StoredTensor:
        """Return a weight's sections, checked.

        Raises
        ------
        FormatError
            If a section is missing, of the wrong type, or out of range.
        """
        if entry.product:
            return self._product(entry)
        scale_format, per = self.manifest.scale_format, self.manifest.scale_per
        get, has_palettes = self._section, f"{entry.name}.palettes" in self.tensors
        tensor = PackedTensor(
            grid=entry.grid,
            scale_format=scale_format,
            payload=get(entry.name, "payload", np.uint8),
            bits=get(entry.name, "bits", np.uint8),
            groups=get(entry.name, "groups", np.uint16),
            scales=get(entry.name, "scales", scale_format.dtype, rank=2),
            scale_base=get(entry.name, "scale_base", np.float16) if scale_format.has_base else None,
            zero_points=get(entry.name, "zero_points", np.uint8, rank=1 if per is ScalePer.GROUP else 2),
            row_offsets=get(entry.name, "row_offsets", np.uint64),
            row_permutation=self._permutation(
                f"{entry.name}.row_permutation", entry.shape[0], required=False
            ),
            column_permutation=self._columns(entry),
            palettes=get(entry.name, "palettes", np.uint8) if has_palettes else None,
            correction=self._correction(entry),
            scale_per=per,
        )
        check_packed(tensor, name=entry.name)
        return tensor

    def _section(self, name: str, section: str, dtype: npt.DTypeLike, *, rank: int = 1) -> npt.NDArray[Any]:
        key = f"{name}.{section}"
        if key not in self.tensors:
            raise FormatError(f"{self.folder}: tensor {key} is missing", hint="copy or quantize it again")
        array = self.tensors[key].array()
        if array.dtype != np.dtype(dtype) or array.ndim != rank:
            raise FormatError(
                f"{self.folder}: {key} holds {array.dtype} of {array.ndim} axes, "
                f"expected {np.dtype(dtype)} of {rank}",
                hint="copy or quantize it again",
            )
        return array

    def _columns(self, entry: WeightEntry) -> IndexArray | None:
        if not entry.column_order:
            return None
        return self._permutation(entry.column_order, entry.shape[1], required=True)

    def _product(self, entry: WeightEntry) -> ProductTensor:
        name = entry.name
        tensor = ProductTensor(
            *entry.shape,
            codes=self._section(name, "product_codes", np.uint8, rank=3),
            codebooks=self._section(name, "product_codebooks", np.float16, rank=3),
            row_scales=self._section(name, "product_scales", np.float16),
            column_permutation=self._columns(entry),
        )
        problems = product_problems(tensor, product_code(entry.product))
        if problems:
            raise FormatError(f"{name}: {'; '.join(problems)}", hint="copy or quantize it again")
        return tensor

    def _correction(self, entry: WeightEntry) -> Correction | None:
        if entry.amount is None:
            return None
        found = {}
        for name, dtype, shape in entry.amount.sections(*entry.shape):
            found[name] = self._section(entry.name, name, dtype, rank=len(shape))
            if found[name].shape != shape:
                raise FormatError(
                    f"{entry.name}: {name} has shape {found[name].shape}, {entry.amount.name} needs {shape}",
                    hint="copy or quantize it again",
                )
        return entry.amount.read(found)

    def _permutation(self, key: str, n: int, *, required: bool) -> IndexArray | None:
        if key not in self.tensors and not required:
            return None
        name, _, section = key.rpartition(".")
        return self._section(name, section, index_dtype(n))


def save_archive(
    folder: Path,
    manifest: Manifest,
    *,
    packed: Mapping[str, StoredTensor],
    kept: Mapping[str, RawTensor],
    sidecars: Callable[[Path], None] | None,
    check: Callable[[Path], None],
) -> None:
    """Write an archive beside `folder` and rename it into place.

    Parameters
    ----------
    folder : Path
        Free, or an archive that is replaced.
    manifest : Manifest
        Without hashes and names of files, which are filled in here.
    packed : mapping
        Packed weights by name.
    kept : mapping
        Tensors stored as they were.
    sidecars : callable or None
        Writes config and tokenizer files into a folder.
    check : callable
        Looks at the complete folder before it takes its place; what it raises leaves the old one there.

    Raises
    ------
    RequestError
        If the folder holds something that laq did not write.
    """
    tensors = archive_tensors(manifest, packed, kept)
    with replaced_folder(folder, ARCHIVE_FOLDER) as partial:
        if sidecars is not None:
            sidecars(partial)
        files = sorted(file.relative_to(partial).as_posix() for file in partial.rglob("*") if file.is_file())
        shards = _write_shards(partial, tensors)
        text = _manifest_json(replace(manifest, shards=tuple(shards), sidecars=tuple(files)), packed, tensors)
        (partial / MANIFEST).write_text(padded(text, manifest))
        check(partial)


def archive_tensors(
    manifest: Manifest, packed: Mapping[str, StoredTensor], kept: Mapping[str, RawTensor]
) -> dict[str, RawTensor]:
    """Return all tensors by name, in the order of the file."""
    tensors: dict[str, RawTensor] = {}
    for entry in manifest.weights:
        for section, array in packed[entry.name].sections().items():
            is_shared = section == "column_permutation"
            tensors[entry.column_order if is_shared else f"{entry.name}.{section}"] = RawTensor.of(array)
    tensors |= kept
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    return {name: tensors[name] for name, _, _ in _in_file_order(specs, manifest)}


def _in_file_order(specs: Iterable[TensorSpec], manifest: Manifest) -> list[TensorSpec]:
    """Payloads first, so that each starts at a multiple of 64 bytes, then by falling size of an element.

    Tensors follow each other without a gap: each is aligned to its elements, and can be used where it lies.
    """
    payloads = {f"{entry.name}.payload" for entry in manifest.weights}

    def place(spec: TensorSpec) -> tuple[bool, int, str]:
        name, dtype, _ = spec
        return name not in payloads, -DTYPES[dtype].itemsize, "" if name in payloads else name

    return sorted(specs, key=place)


def _write_shards(folder: Path, tensors: Mapping[str, RawTensor]) -> list[str]:
    groups: list[dict[str, RawTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.data.nbytes > SHARD_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.data.nbytes
    names = [f"packed-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    for name, group in track(zip(names, groups, strict=True), label="writing", total=len(names)):
        write_tensors(folder / name, group, metadata=METADATA)
    return names


def _manifest_json(
    manifest: Manifest, packed: Mapping[str, StoredTensor], tensors: Mapping[str, RawTensor]
) -> str:
    weights = []
    for entry in manifest.weights:
        sections = [s for s in packed[entry.name].sections() if s != "column_permutation"]
        fields = {**entry.to_json(), "sha256": _hash(tensors[f"{entry.name}.{s}"] for s in sections)}
        weights.append(fields)
    content = {
        "format": "laq-archive",
        "version": _version(manifest, packed.values()),
        "architecture": manifest.architecture,
        "scale_format": manifest.scale_format.value,
        **({} if manifest.scale_per is ScalePer.GROUP else {"scale_per": manifest.scale_per.value}),
        "plan": dict(manifest.plan),
        "provenance": dict(manifest.provenance),
        "record": dict(manifest.record),
        "shards": manifest.shards,
        "sidecars": manifest.sidecars,
        "column_permutations": {name: _hash([tensors[name]]) for name in manifest.column_permutations},
        "kept": {name: _hash([tensors[name]]) for name in manifest.kept},
        "weights": weights,
    }
    return json.dumps(content, separators=(",", ":"))


def _version(manifest: Manifest, packed: Collection[StoredTensor]) -> int:
    """Return the first version that knows these bytes: older readers open what they can."""
    scales = SCALES_VERSION.get(manifest.scale_format, 1) if manifest.scale_per is ScalePer.GROUP else 4
    return max([scales, *map(_first_version, packed)])


def _first_version(stored: StoredTensor) -> int:
    if isinstance(stored, ProductTensor):
        return OPTIONAL["product"]
    if isinstance(stored.correction, Outliers):
        return OPTIONAL["outliers"]
    highest = int(stored.bits.max(initial=0))
    if highest > TRITS.tag:
        return 4
    if stored.correction is not None:
        return OPTIONAL["rank"]
    if highest > PALETTE_TAG:
        return 3
    return 2 if highest > TAG else 1


def _hash(tensors: Iterable[RawTensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.data.data)
    return digest.hexdigest()


def fixed_bytes(
    manifest: Manifest,
    *,
    kept: Iterable[TensorSpec],
    column_specs: Iterable[TensorSpec],
    palettes: Iterable[str] = (),
    sidecar_bytes: int,
) -> int:
    """Return the bytes of an archive besides its weights' own sections; a tight upper bound.

    Parameters
    ----------
    manifest : Manifest
        Names and shapes of the weights.
    kept, column_specs : iterable of TensorSpec
        Tensors stored as they were, and shared column permutations.
    palettes : iterable of str
        Weights whose plan may use learned entries: those are counted here.
    sidecar_bytes : int
        Config and tokenizer files.
    """
    widest = [
        (f"{entry.name}.{s.name}", _dtype_name(s), s.shape)
        for entry in manifest.weights
        for s in _widest_sections(entry, manifest)
    ]
    data = sum(spec.size_bytes for entry in manifest.weights for spec in _widest_sections(entry, manifest))
    # in the order of the file, so that no offset in its header takes more digits than here
    learned = [(f"{name}.palettes", "U8", (PALETTE_BYTES,)) for name in palettes]
    specs = _in_file_order([*widest, *learned, *column_specs, *kept], manifest)
    with_weights = file_size_bytes(specs, METADATA)
    n_shards = with_weights // SHARD_BYTES + 1
    shard_overhead = (n_shards - 1) * SHARD_OVERHEAD
    return sidecar_bytes + manifest_reserve_bytes(manifest) + with_weights - data + shard_overhead


def correction_bytes(name: str, shape: tuple[int, int], amount: Amount | None) -> int:
    """Return what a correction adds to an archive: its sections, and a tight upper bound of their headers.

    Padding of the header to whole steps of `DATA_ALIGNMENT_BYTES` may add one step for all together.

    Parameters
    ----------
    name : str
        The weight.
    shape : tuple of int
        [n_rows, n_columns].
    amount : Amount or None
        None costs nothing.

    Examples
    --------
    >>> from laq.core.correction import Kind
    >>> correction_bytes("w", (100, 50), None), correction_bytes("w", (100, 50), Amount(Kind.RANK, 4))
    (0, 803)
    """
    return 0 if amount is None else AMOUNT_RESERVE + _bytes_with_header(name, amount.sections(*shape))


def product_bytes(name: str, shape: tuple[int, int], code: ProductCode) -> int:
    """Return what a weight in a product code takes; like `correction_bytes` without the tables of tiles."""
    return PRODUCT_RESERVE + _bytes_with_header(name, product_sections(*shape, code))


def _bytes_with_header(name: str, sections: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> int:
    """Bytes of sections, and the most that the header can say of them."""
    specs = [SectionSpec(*section) for section in sections]
    lines = {
        f"{name}.{spec.name}": {
            "dtype": _dtype_name(spec),
            "shape": spec.shape,
            "data_offsets": [SHARD_BYTES] * 2,
        }
        for spec in specs
    }
    header = len(json.dumps(lines, separators=(",", ":")))
    return header + sum(spec.size_bytes for spec in specs)


def _widest_sections(entry: WeightEntry, manifest: Manifest) -> list[SectionSpec]:
    grid = entry.grid
    choices = np.full((grid.n_row_blocks, grid.n_groups), 8, np.uint8)
    return section_specs(
        grid, manifest.scale_format, choices, has_row_permutation=True, scale_per=manifest.scale_per
    )


def _dtype_name(spec: SectionSpec) -> str:
    return RawTensor.of(np.empty(0, spec.dtype)).dtype


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def open_archive(folder: Path) -> Archive:
    """Open an archive; headers are checked now, contents when they are used, hashes by `verify_hashes`.

    Raises
    ------
    FormatError
        If it is not an archive, of a later version, or damaged.
    """
    manifest = read_manifest(folder)
    tensors: dict[str, RawTensor] = {}
    for shard in manifest.shards:
        tensors |= dict(open_tensors(folder / shard))
    missing = [name for name in (*manifest.kept, *manifest.column_permutations) if name not in tensors]
    if missing:
        raise FormatError(
            f"{folder}: tensors missing: {', '.join(missing[:8])}", hint="copy or quantize it again"
        )
    return Archive(folder, manifest, tensors)


def missing_sidecars(archive: Archive) -> list[str]:
    """Return the config and tokenizer files that were saved with an archive and are not there any more."""
    return [name for name in archive.manifest.sidecars if not (archive.folder / name).is_file()]


def verify_hashes(archive: Archive) -> list[str]:
    """Return the names of weights and tensors whose bytes differ from their sha256 in laq.json."""
    bad = []
    manifest = archive.manifest
    for entry in track(manifest.weights, label="checking sums", total=len(manifest.weights)):
        names = [f"{entry.name}.{s}" for s in archive.packed(entry).sections() if s != "column_permutation"]
        if _hash(archive.tensors[name] for name in names) != entry.sha256:
            bad.append(entry.name)
    for name, expected in {**manifest.kept, **manifest.column_permutations}.items():
        if _hash([archive.tensors[name]]) != expected:
            bad.append(name)
    return bad
