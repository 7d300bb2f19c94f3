"""laq inspect: what a file or folder holds; headers only, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laq.cli.options import AsJson, Debug
from laq.cli.output import running

if TYPE_CHECKING:
    from laq.cli.bits import Bits

PathArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", help="Archive, plan (.json), .gguf or .safetensors file, or Hugging Face folder."
    ),
]


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    shape: tuple[int, ...]
    type_name: str
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": self.shape, "type": self.type_name, "size_bytes": self.size_bytes}


@dataclass(frozen=True, slots=True)
class _Content:
    """What was found: rows are tensors; `weights` are those that laq packed, or will."""

    kind: str
    size_bytes: int
    n_params: int
    rows: list[_Row]
    weights: list[Bits] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


def inspect(path: PathArgument, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the tensors of a file or folder."""
    with running(debug=debug, as_json=as_json, quiet=True) as out:
        content = _read(path)
        out.show(_to_json(content), *_parts(path, content))


def _read(path: Path) -> _Content:
    from laq.core.errors import RequestError
    from laq.io.manifest import MANIFEST

    if (path / MANIFEST).is_file():
        return _read_archive(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise RequestError(f"{path}: no such file or folder", hint="check the path")
    readers = {".json": _read_plan, ".gguf": _read_gguf, ".safetensors": _read_safetensors}
    if path.name == MANIFEST:
        raise RequestError(
            f"{path}: is part of an archive", hint=f"give its folder: laq inspect {path.parent}"
        )
    if path.suffix not in readers:
        raise RequestError(
            f"{path}: not an archive, a plan (.json), a .gguf or .safetensors file, or a model folder",
            hint="check the path",
        )
    return readers[path.suffix](path)


def _read_archive(path: Path) -> _Content:
    from laq.cli.bits import bits_of_archive
    from laq.io.archive import open_archive

    archive = open_archive(path)
    manifest, weights = archive.manifest, bits_of_archive(archive)
    others = [*manifest.kept, *manifest.column_permutations]
    tensors = {name: archive.tensors[name] for name in others}
    return _Content(
        kind="archive",
        size_bytes=archive.size_bytes,
        n_params=manifest.n_params,
        rows=[_packed_row(bits) for bits in weights]
        + [_Row(name, raw.shape, raw.dtype, raw.data.nbytes) for name, raw in tensors.items()],
        weights=weights,
        more={name: dict(getattr(manifest, name)) for name in ("plan", "provenance", "record")},
    )


def _read_plan(path: Path) -> _Content:
    from laq.cli.bits import bits_of_plan
    from laq.core.plan import Plan

    plan = Plan.open(path)
    weights = bits_of_plan(plan)
    rows = [_packed_row(bits) for bits in weights]
    return _Content("plan", plan.size_bytes, plan.n_params, rows, weights, {"plan": plan.summary()})


def _read_gguf(path: Path) -> _Content:
    from laq.io.gguf import check_gguf

    header = check_gguf(path)
    rows = [_Row(t.name, t.shape, t.type_name, t.size_bytes) for t in header.tensors]
    return _stored("gguf", path.stat().st_size, rows)


def _read_safetensors(path: Path) -> _Content:
    return _stored("safetensors", path.stat().st_size, _safetensors_rows(path))


def _read_folder(path: Path) -> _Content:
    from laq.core.errors import RequestError
    from laq.io.archive import folder_bytes

    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise RequestError(
            f"{path}: neither an archive (laq.json) nor a folder with .safetensors files",
            hint="check the path",
        )
    rows = [row for file in files for row in _safetensors_rows(file)]
    return _stored("folder", folder_bytes(path), rows)


def _safetensors_rows(path: Path) -> list[_Row]:
    from laq.io.safetensors import read_header

    return [_Row(name, e.shape, e.dtype, e.size_bytes) for name, e in read_header(path).items()]


def _stored(kind: str, size_bytes: int, rows: list[_Row]) -> _Content:
    from math import prod

    return _Content(kind, size_bytes, sum(prod(row.shape) for row in rows), rows)


def _packed_row(bits: Bits) -> _Row:
    return _Row(bits.name, bits.shape, f"{bits.bpw:.2f} bits", bits.size_bytes)


def _to_json(content: _Content) -> dict[str, Any]:
    from laq.cli.bits import histograms

    return {
        "kind": content.kind,
        "size_bytes": content.size_bytes,
        "n_params": content.n_params,
        "bpw": _bpw(content),
        "tensors": [row.to_json() for row in content.rows],
        **(histograms(content.weights) if content.weights else {}),
        **content.more,
    }


def _parts(path: Path, content: _Content) -> list[Any]:
    from laq.cli.tables import depth_table, format_table, mega, role_table, table_of

    rows = [
        (row.name, " x ".join(map(str, row.shape)), row.type_name, mega(row.size_bytes))
        for row in content.rows
    ]
    parts = [
        table_of(str(path), ["tensor", "shape", "type", ">MB"], rows),
        f"{content.kind}: {len(rows)} tensors, {content.n_params / 1e6:.2f} M weights, "
        f"{mega(content.size_bytes)} MB, {_bpw(content):.2f} bits per weight\n",
    ]
    if content.weights:
        parts += [
            format_table(content.weights),
            depth_table(content.weights),
            role_table(content.weights, total_bytes=content.size_bytes),
        ]
    return parts


def _bpw(content: _Content) -> float:
    return 8 * content.size_bytes / max(1, content.n_params)
