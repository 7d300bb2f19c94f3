"""Networks opened for a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from laq.core.errors import FormatError, RequestError
from laq.io.archive import Archive, missing_sidecars, open_archive
from laq.networks.module import Network
from laq.networks.transformers import load_tokenizer, require_transformers
from laq.quantizers import quantizer_of
from laq.steps import open_network
from laq.transforms import transforms_of


def opened_network(
    model: str,
    *,
    keep: str | None = None,
    quantizer: str = "gptq",
    range: str = "mse",
    transform: str | None = None,
) -> Network:
    """Load a network, after names that would fail later were looked up.

    Parameters
    ----------
    model : str
        Folder, file or hub id.
    keep : str, optional
        Regular expression of weights to leave alone.
    quantizer, range : str
        Must exist.
    transform : str, optional
        Names of transforms, which must exist.

    Raises
    ------
    RequestError
        If there is no such quantizer, range, transform or network.
    """
    quantizer_of(quantizer, range)
    transforms_of(transform)
    return open_network(model, keep=keep)


def opened_reference(model: str, archive: Archive) -> Network:
    """Load the original of an archive; warns if it is another network of the same size.

    Parameters
    ----------
    model : str
        Folder, file or hub id.
    archive : Archive
        What was made from it.

    Raises
    ------
    RequestError
        If there is no such network, or it has another size.
    """
    network, manifest = opened_network(model), archive.manifest
    if network.n_params != manifest.n_params:
        raise RequestError(
            f"{archive.folder}: made from a network of {manifest.n_params} weights, "
            f"{network.source} has {network.n_params}",
            hint="give the original with --reference",
        )
    if network.content_hash() != manifest.provenance.get("source_hash"):
        print(
            f"warning: {network.source} is not the network that {archive.folder} was made from: "
            "the result compares two different networks",
            file=sys.stderr,
        )
    return network


def archive_tokenizer(folder: Path) -> Any:
    """Return the tokenizer that lies in an archive.

    Raises
    ------
    FormatError
        If there is no archive, or files are missing.
    RequestError
        If there is no tokenizer in it.
    """
    archive = open_archive(folder)
    missing = missing_sidecars(archive)
    if missing:
        raise FormatError(f"{folder}: {', '.join(missing)} is missing", hint="copy or quantize it again")
    tokenizer = load_tokenizer(require_transformers(), folder)
    if tokenizer is None:
        raise RequestError(f"{folder}: holds no tokenizer", hint="this works for language models only")
    return tokenizer
