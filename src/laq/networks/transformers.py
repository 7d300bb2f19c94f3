"""Causal language models of the transformers package, from a folder or the hub."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from laq.core.errors import FormatError, NetworkError, RequestError, ResourceError
from laq.core.progress import track
from laq.io.archive import SIDECAR_PATTERNS
from laq.io.safetensors import read_header
from laq.networks.module import Network, describe

FLOAT32_SHARE = 0.4
"""Share of the machine's memory up to which a network is loaded in float32 whatever its files hold."""


def require_transformers() -> Any:
    """Return the transformers package, quiet.

    Raises
    ------
    RequestError
        If it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise RequestError(
            "language models need the packages transformers and gguf", hint="pip install 'laq[llm]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def load_folder(folder: Path, *, source: str) -> Network:
    """Load a Hugging Face folder with one or several safetensors files."""
    transformers = require_transformers()
    files = checkpoint_files(folder)
    entries = [entry for file in files for entry in read_header(file).values()]
    original_bytes = sum(entry.size_bytes for entry in entries)
    config = _config(transformers, folder)
    check_causal(config, source)
    dtype = choose_dtype(sum(_n_elements(entry.shape) for entry in entries), original_bytes, source=source)
    try:
        ((module, info),) = [
            transformers.AutoModelForCausalLM.from_pretrained(
                one,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            for one in track([folder], label="loading", total=1)
        ]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise NetworkError(f"{source}: transformers cannot load it: {first_line(error)}") from error
    check_complete(info, source)
    return describe(
        module.eval(),
        architecture="transformers",
        tokenizer=load_tokenizer(transformers, folder),
        sidecars=lambda target: copy_sidecars(folder, target),
        source=source,
        original_bytes=original_bytes,
    )


def is_causal_model(module: nn.Module) -> bool:
    """Say whether a module in memory is a causal language model of transformers."""
    config = getattr(module, "config", None)
    if not hasattr(module, "save_pretrained") or not hasattr(config, "model_type"):
        return False
    return type(module).__name__ in _causal_classes().values()


def _causal_classes() -> dict[str, str]:
    known: dict[str, str] = require_transformers().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known


def describe_causal(module: nn.Module) -> Network:
    """Describe a causal language model in memory: its archive can be opened without it."""
    return describe(
        module,
        architecture="transformers",
        sidecars=lambda target: write_sidecars(module, None, target),
        source=f"{type(module).__name__} in memory",
    )


def load_from_hub(name: str) -> Network:
    """Download a model from the hub, or take it from the local cache, and load it."""
    require_transformers()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = snapshot_download(
            name, allow_patterns=[*SIDECAR_PATTERNS, "model*.safetensors", "*.safetensors.index.json"]
        )
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise NetworkError(
            f"{name}: no such file or folder, and the hub gave no such model{offline}: {first_line(error)}",
            hint="check the name, the connection, or give a local folder or .gguf file",
        ) from error
    return load_folder(Path(folder), source=name)


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, all shards of the index present.

    Raises
    ------
    NetworkError
        If there are none, or only pickled weights, or a shard is missing.
    """
    if not (folder / "config.json").is_file():
        raise NetworkError(f"{folder}: no config.json in it", hint="give the folder of a Hugging Face model")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{index}: not a shard index ({error})", hint="download it again") from error
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise NetworkError(f"{folder}: shards missing: {', '.join(missing)}", hint="download them again")
        return files
    single = folder / "model.safetensors"
    if not single.is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise NetworkError(
            f"{folder}: no model.safetensors"
            + (", only pickled weights, which can run code" if pickled else ""),
            hint="convert it once with save_pretrained(..., safe_serialization=True)"
            if pickled
            else "check the path",
        )
    return [single]


def _config(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NetworkError(
            f"{folder}/config.json: {first_line(error)}",
            hint="laq loads the causal language models that the installed transformers knows",
        ) from error


def check_causal(config: Any, source: str) -> None:
    """Raise NetworkError unless transformers has a causal language model for this config."""
    if config.model_type not in _causal_classes() or getattr(config, "is_encoder_decoder", False):
        raise NetworkError(
            f"{source}: architecture {config.model_type!r} is not a causal language model of transformers",
            hint="pass such a network as an nn.Module with data: laq.quantize(module, bpw=..., data=batches)",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise NetworkError(
            f"{source}: is already quantized ({config.quantization_config})",
            hint="give the original float checkpoint",
        )


def choose_dtype(n_params: int, stored_bytes: int, *, source: str) -> torch.dtype | str:
    """Return float32 where memory allows, else the files' own type.

    Raises
    ------
    ResourceError
        If not even that fits.
    """
    memory = psutil.virtual_memory()
    free = memory.available
    if 4 * n_params <= FLOAT32_SHARE * memory.total and 4 * n_params <= free:
        return torch.float32
    if stored_bytes > 0.9 * free:
        raise ResourceError(
            f"{source}: needs {stored_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            hint="use a machine with more memory, or a smaller model",
        )
    return "auto"


def check_complete(info: dict[str, Any], source: str) -> None:
    """Raise NetworkError if the files lacked tensors of the network."""
    missing = sorted(info.get("missing_keys", ()))
    mismatched = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing or mismatched:
        names = ", ".join([*missing, *mismatched][:8])
        raise NetworkError(
            f"{source}: tensors missing or of the wrong shape: {names}",
            hint="download it again; only causal language models can be loaded",
        )


def load_tokenizer(transformers: Any, folder: Path, **kwargs: Any) -> Any:
    """Return the tokenizer of a folder, or None if it has none.

    Raises
    ------
    RequestError
        If a package that it needs is missing.
    FormatError
        If its file is damaged.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **kwargs
        )
    except ImportError as error:
        raise RequestError(
            f"{folder}: its tokenizer needs a package that is not installed: {first_line(error)}",
            hint="install what it names",
        ) from error
    except (OSError, ValueError, KeyError, TypeError):
        check_json(folder / "tokenizer.json")
        return None


def check_json(file: Path) -> None:
    """Raise FormatError if `file` is there and is not JSON."""
    if file.is_file():
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{file}: damaged ({error})", hint="download it again") from error


def write_sidecars(module: Any, tokenizer: Any, target: Path) -> None:
    """Write config, generation config and tokenizer files from objects in memory."""
    module.config.save_pretrained(target)
    if module.generation_config is not None:
        module.generation_config.save_pretrained(target)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
        compact_tokenizer(target)


def copy_sidecars(folder: Path, target: Path) -> None:
    """Copy config, generation config and tokenizer files; white space in tokenizer.json is left out."""
    for pattern in SIDECAR_PATTERNS:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, target / file.name)
    compact_tokenizer(target)


def compact_tokenizer(target: Path) -> None:
    """Rewrite tokenizer.json without white space: the same content, a third smaller."""
    file = target / "tokenizer.json"
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _n_elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
