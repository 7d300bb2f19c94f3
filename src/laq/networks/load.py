"""From a path or hub id to a network."""

from __future__ import annotations

import re
from pathlib import Path

from laq.core.errors import NetworkError
from laq.networks.module import Network

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_network(source: str | Path) -> Network:
    """Load a causal language model.

    Parameters
    ----------
    source : str or Path
        A Hugging Face folder with safetensors, a .gguf file, or a hub id when online.

    Raises
    ------
    NetworkError
        If there is no such thing, or its architecture is unknown.
    FormatError
        If a file is truncated or malformed.
    ResourceError
        If it will not fit in memory.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".gguf":
        from laq.networks.gguf import load_gguf

        return load_gguf(path)
    if (path / "laq.json").is_file():
        raise NetworkError(
            f"{path}: is a laq archive, already quantized",
            hint="give the original; `laq eval` and `laq inspect` take archives",
        )
    if path.is_dir():
        from laq.networks.transformers import load_folder

        return load_folder(path, source=str(path))
    if path.exists():
        raise NetworkError(
            f"{path}: not a model", hint="give a Hugging Face folder, a .gguf file or a hub id"
        )
    if HUB_ID.fullmatch(str(source)):
        from laq.networks.transformers import load_from_hub

        return load_from_hub(str(source))
    raise NetworkError(
        f"{source}: no such file or folder", hint="give a Hugging Face folder, a .gguf file or a hub id"
    )
