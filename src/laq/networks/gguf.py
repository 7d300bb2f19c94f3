"""Causal language models from a .gguf file, any ggml type that gguf-py can dequantize."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from laq.core.errors import NetworkError
from laq.core.progress import track
from laq.io.gguf import GgufHeader, check_gguf, is_dequantizable
from laq.networks.module import Network, describe
from laq.networks.transformers import (
    check_causal,
    check_complete,
    choose_dtype,
    load_tokenizer,
    require_transformers,
    write_sidecars,
)


def load_gguf(path: Path) -> Network:
    """Load a .gguf file; its header is checked against the file's size before any reader touches it."""
    transformers = require_transformers()
    header = check_gguf(path)
    _check_types(header, path)
    original_bytes = sum(tensor.size_bytes for tensor in header.tensors)
    n_params = sum(_n_elements(tensor.shape) for tensor in header.tensors)
    dtype = choose_dtype(n_params, 4 * n_params, source=str(path))  # transformers dequantizes to float32
    try:
        with _no_foreign_bar():
            ((module, info),) = [
                transformers.AutoModelForCausalLM.from_pretrained(
                    one.parent,
                    gguf_file=one.name,
                    dtype=dtype,
                    local_files_only=True,
                    output_loading_info=True,
                )
                for one in track([path], label="loading", total=1)
            ]
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        architecture = header.metadata.get("general.architecture")
        raise NetworkError(
            f"{path}: transformers cannot load architecture {architecture!r} from GGUF: {error}",
            hint="give the Hugging Face folder of the same model",
        ) from error
    # transformers 5.23.0 calls what it has just dequantized quantized
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config
    check_causal(module.config, str(path))
    check_complete(info, str(path))
    tokenizer = load_tokenizer(transformers, path.parent, gguf_file=path.name)
    return describe(
        module.eval(),
        architecture="transformers",
        tokenizer=tokenizer,
        sidecars=lambda target: write_sidecars(module, tokenizer, target),
        source=str(path),
        original_bytes=original_bytes,
    )


@contextmanager
def _no_foreign_bar() -> Iterator[None]:
    """Without the bar that transformers 5.23 draws over a tenth of the time that reading takes."""

    def plain(tensors: Sequence[Any], **_: object) -> Sequence[Any]:
        return tensors

    with mock.patch("transformers.modeling_gguf_pytorch_utils.tqdm", plain, create=True):
        yield


def _check_types(header: GgufHeader, path: Path) -> None:
    bad = sorted({tensor.type_name for tensor in header.tensors if not is_dequantizable(tensor.type_name)})
    if bad:
        raise NetworkError(
            f"{path}: tensor types that gguf-py cannot dequantize: {', '.join(bad)}",
            hint="give a file of another type, or the original model",
        )


def _n_elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
