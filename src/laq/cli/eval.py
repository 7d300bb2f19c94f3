"""laq eval: how far a quantized network is from its original."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laq.cli.options import Archive, AsJson, Debug, EvalData, EvalTokens, Quiet
from laq.cli.output import running

if TYPE_CHECKING:
    from laq.networks import Batch, Network

Reference = Annotated[str, typer.Option("--reference", metavar="MODEL", help="The original.")]


def evaluate(
    out_folder: Archive,
    reference: Reference,
    data: EvalData = None,
    tokens: EvalTokens = None,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Compare an archive with its original.

    Measures KL, perplexity, top-1 agreement and bytes.
    Without --data the built-in text's test split is used, which `laq quantize` neither calibrates nor
    chooses on.
    """
    with running(debug=debug, as_json=as_json, quiet=quiet, may_download=not Path(reference).exists()) as out:
        from laq.cli.loading import opened_reference
        from laq.cli.tables import cost_table
        from laq.io.archive import open_archive
        from laq.runtime.load import check_hashes, module_of
        from laq.steps import evaluate as run

        archive = open_archive(out_folder)
        _warn_if_seen(archive.manifest.provenance, data)
        check_hashes(archive)
        module = module_of(archive)
        network = opened_reference(reference, archive)
        record = run(
            module,
            reference=network,
            data=_batches(network, data, tokens),
            size_bytes=archive.size_bytes,
            split="test" if data is None else data,
        )
        out.show(
            record.to_json(), cost_table([("quantized", record)], title=f"{out_folder} on {record.split}")
        )


def _batches(network: Network, data: str | None, tokens: int | None) -> list[Batch]:
    from laq.calibration.data import evaluation_batches, sequence_length

    batches = list(evaluation_batches(network, data, n_tokens=tokens))
    return batches if tokens is None else batches[: max(1, tokens // sequence_length(network))]


def _warn_if_seen(provenance: Any, data: str | None) -> None:
    if data is not None and provenance.get("data") == data:
        print(f"warning: {data} was used to calibrate: the result is too good", file=sys.stderr)
