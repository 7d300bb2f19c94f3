"""laq verify: check that an archive is whole and runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from laq.cli.options import Archive, AsJson, Debug, Quiet
from laq.cli.output import running

if TYPE_CHECKING:
    from laq.io.archive import Archive as OpenedArchive

N_TOKENS = 8
"""Ids 0 to 7 are in every vocabulary."""


def verify(out_folder: Archive, as_json: AsJson = False, debug: Debug = False, quiet: Quiet = False) -> None:
    """Check that an archive is whole and runs.

    Headers, every weight's tables, all checksums, files of the source, and one forward pass.
    Names everything damaged or missing; exit code 2 if there is one.
    """
    with running(debug=debug, as_json=as_json, quiet=quiet) as out:
        from laq.core.errors import FormatError
        from laq.io.archive import open_archive

        archive = open_archive(out_folder)
        problems = _problems(archive)
        content = {
            "folder": str(out_folder),
            "is_intact": not problems,
            "n_weights": len(archive.manifest.weights),
            "n_other_tensors": len(archive.manifest.kept) + len(archive.manifest.column_permutations),
            "forward": "not run" if problems else _forward(archive),
            "problems": problems,
        }
        text = (
            "{folder}: intact; {n_weights} packed weights and {n_other_tensors} other tensors match their "
            "checksums; forward pass: {forward}".format(**content)
        )
        if as_json or not problems:
            out.show(content, text)
        if problems:
            listed = "; ".join(f"{name}: {what}" for name, what in problems.items())
            raise FormatError(f"{out_folder}: damaged: {listed}", hint="copy or quantize it again")


def _problems(archive: OpenedArchive) -> dict[str, str]:
    """What is wrong with each file and tensor; a weight with bad tables has no sections to sum."""
    from laq.core.errors import FormatError
    from laq.io.archive import missing_sidecars, verify_hashes

    found = dict.fromkeys(missing_sidecars(archive), "is missing")
    for entry in archive.manifest.weights:
        try:
            archive.packed(entry)
        except FormatError as error:
            found[entry.name] = error.message.removeprefix(f"{entry.name}: ")
    readable = tuple(entry for entry in archive.manifest.weights if entry.name not in found)
    rest = replace(archive, manifest=replace(archive.manifest, weights=readable))
    return found | dict.fromkeys(verify_hashes(rest), "bytes differ from their checksum")


def _forward(archive: OpenedArchive) -> str:
    """Run a few tokens through the network; it cannot be built if it was a module in memory."""
    if archive.manifest.architecture != "transformers":
        return "not run, needs the module it was made from"
    import torch

    from laq.core.errors import FormatError
    from laq.networks.module import run_logits
    from laq.runtime.load import module_of

    module = module_of(archive)
    with torch.inference_mode():
        logits = run_logits(module, {"input_ids": torch.arange(N_TOKENS)[None], "use_cache": False})
    if not bool(torch.isfinite(logits).all()):
        raise FormatError(f"{archive.folder}: outputs are not finite", hint="quantize it again")
    return "finite"
