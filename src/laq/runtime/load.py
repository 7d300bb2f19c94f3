"""From an archive to a module that runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laq.core.errors import FormatError, RequestError
from laq.core.storage import MALFORMED
from laq.io.archive import Archive, open_archive, verify_hashes
from laq.io.manifest import Manifest
from laq.networks.tensors import from_raw, torch_dtype
from laq.networks.transformers import first_line, require_transformers
from laq.runtime.arena import archive_memory
from laq.runtime.linear import PackedLinear
from laq.runtime.replace import replace_weights_


def load(
    folder: str | Path,
    *,
    module: nn.Module | None = None,
    device: str = "cpu",
    activation_bits: int | None = None,
) -> nn.Module:
    """Open an archive as an ordinary module whose weights stay packed in memory.

    Parameters
    ----------
    folder : str or Path
        What `Result.save` or `laq quantize` wrote.
    module : nn.Module, optional
        A fresh module of the original's class, for archives of networks given in memory; changed in place.
        Language models of transformers are built from the archive's config.
    device : str
        Where to put it.
    activation_bits : int, optional
        Bits that the native kernels round inputs of linears to, 8 or 16. Without it 16 up to four tokens at a
        time, where that costs nothing, and 8 above, where it is faster.

    Raises
    ------
    FormatError
        If the archive is damaged.
    RequestError
        If `module` is needed, or does not fit.
    """
    if activation_bits not in (None, 8, 16):
        raise RequestError(f"activation_bits={activation_bits!r}", hint="choose 8, 16 or None")
    archive = open_archive(Path(folder))
    check_hashes(archive)
    loaded = module_of(archive, module=module).to(device)
    for layer in loaded.modules():
        if isinstance(layer, PackedLinear):
            layer.activation_bits = activation_bits
    return loaded


def check_hashes(archive: Archive) -> None:
    """Raise FormatError, with their names, if bytes differ from the sums that were stored with them."""
    damaged = verify_hashes(archive)
    if damaged:
        raise FormatError(
            f"{archive.folder}: bytes differ from their checksums: {', '.join(damaged[:8])}",
            hint="copy or quantize it again",
        )


def module_of(archive: Archive, *, module: nn.Module | None = None) -> nn.Module:
    """Build the module of an opened archive; see `load`."""
    manifest = archive.manifest
    if module is None:
        if manifest.architecture != "transformers":
            raise RequestError(
                f"{archive.folder}: was made from a module in memory, which laq cannot build by itself",
                hint="pass a fresh one: laq.load(folder, module=MyNetwork())",
            )
        module = _empty_transformer(archive)
    if not isinstance(module, nn.Module):
        raise RequestError(
            f"{archive.folder}: module is {type(module).__name__}, not a module",
            hint="pass an instance: laq.load(folder, module=MyNetwork())",
        )
    _check_fits(archive, module)
    packed = {entry.name: archive.packed(entry) for entry in manifest.weights}
    memory = archive_memory()
    holders = {entry.name: entry.modules for entry in manifest.weights}
    replace_weights_(module, holders, packed, memory=memory)
    for name in manifest.kept:
        _put(module, name, from_raw(archive.tensors[name], place=memory.place))
    _tie_kept_head(module)
    left = [name for name, tensor in module.named_parameters() if tensor.device.type == "meta"]
    if left:
        raise FormatError(
            f"{archive.folder}: holds nothing for {', '.join(left[:8])}", hint="quantize it again"
        )
    return module.eval()


def _empty_transformer(archive: Archive) -> nn.Module:
    transformers = require_transformers()
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    if not (archive.folder / "config.json").is_file():
        raise FormatError(f"{archive.folder}: config.json is missing", hint="copy or quantize it again")
    try:
        config = transformers.AutoConfig.from_pretrained(archive.folder, local_files_only=True)
        if getattr(config, "num_hidden_layers", 0) > len(archive.tensors):  # would take as long to build
            raise ValueError(f"{config.num_hidden_layers} layers, {len(archive.tensors)} tensors")
        dtype = getattr(torch, archive.manifest.weights[0].dtype)
        with init_empty_weights(include_buffers=False):
            module: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        if (archive.folder / "generation_config.json").is_file():
            module.generation_config = transformers.GenerationConfig.from_pretrained(archive.folder)
    except (*MALFORMED, StrictDataclassError, RuntimeError, AssertionError) as error:
        raise FormatError(f"{archive.folder}: its config cannot be used: {first_line(error)}") from error
    assert isinstance(module, nn.Module)
    return module


def _check_fits(archive: Archive, module: nn.Module) -> None:
    """All offenders at once: what the module lacks, has in another size or type, or would not get."""
    problems = [*_weight_problems(archive, module), *_kept_problems(archive, module)]
    if not problems and archive.manifest.architecture == "module":
        problems += [f"{name}: not in the archive" for name in _unfilled(archive.manifest, module)]
    if problems:
        raise RequestError(
            f"{archive.folder} does not fit {type(module).__name__}: " + "; ".join(problems[:8]),
            hint="pass a module of the class and sizes that were quantized",
        )


def _weight_problems(archive: Archive, module: nn.Module) -> Iterator[str]:
    for entry in archive.manifest.weights:
        for path in entry.modules:
            try:
                found = tuple(module.get_parameter(f"{path}.weight").shape)
                is_plain = isinstance(module.get_submodule(path), nn.Linear | nn.Embedding)
            except AttributeError:
                found, is_plain = None, False
            if found != entry.shape or not is_plain:
                yield f"{path}: expected a linear or embedding {entry.shape}, found {found}"


def _kept_problems(archive: Archive, module: nn.Module) -> Iterator[str]:
    for name in archive.manifest.kept:
        raw = archive.tensors[name]
        kept = torch.empty(raw.shape, dtype=torch_dtype(raw), device="meta")
        try:
            own = _tensor_at(module, name)
            found = f"{str(own.dtype).removeprefix('torch.')} {tuple(own.shape)}"
            # another precision will do: a network may be built in one, and quantized in another
            fits = own.shape == kept.shape and own.is_floating_point() == kept.is_floating_point()
        except AttributeError:
            found, fits = "None", False
        if not fits:
            yield f"{name}: expected {raw.dtype} {raw.shape}, found {found}"


def _unfilled(manifest: Manifest, module: nn.Module) -> list[str]:
    """Names of stored tensors of the module that would stay as they are."""
    names = [f"{path}.weight" for entry in manifest.weights for path in entry.modules]
    filled = {id(_tensor_at(module, name)) for name in (*names, *manifest.kept)}
    persistent = set(module.state_dict())
    own = (*module.named_parameters(), *module.named_buffers())
    return [name for name, tensor in own if name in persistent and id(tensor) not in filled]


def _tensor_at(module: nn.Module, name: str) -> torch.Tensor:
    path, _, attribute = name.rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(path), attribute)
    return tensor


def _tie_kept_head(module: nn.Module) -> None:
    """A tied embedding that was kept is stored once: the head takes it from there."""
    getters = [getattr(module, f"get_{end}_embeddings", None) for end in ("output", "input")]
    head, embedding = (getter() if getter is not None else None for getter in getters)
    if (
        isinstance(head, nn.Linear)
        and isinstance(embedding, nn.Embedding)
        and head.weight.device.type == "meta"
    ):
        head.weight = nn.Parameter(embedding.weight.detach(), requires_grad=False)


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    parent, old = module.get_submodule(path), _tensor_at(module, name)
    if old.device.type != "meta" and old.dtype == tensor.dtype:
        with torch.no_grad():
            old.copy_(tensor)  # in place: whoever shares it sees it
    elif isinstance(old, nn.Parameter):
        setattr(parent, attribute, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(parent, attribute, tensor)
