"""Tokens in three disjoint splits: calibration, selection, test."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from laq.core.effort import CALIBRATION_TOKENS
from laq.core.errors import DataError
from laq.core.progress import track
from laq.networks.module import Batch, Network, evaluation_mode

SEQUENCE_TOKENS = 512
GRADIENT_TOKENS = 8192
GRADIENT_SHARE = 4
"""Calibration tokens that also run backward, or one in so many if that is more: G is a mean per output and
needs fewer than H, a matrix."""

SELECTION_TOKENS = 2048
TEST_TOKENS = 2560
BOUNDARIES = (0.6, 0.8)
"""Where the text is cut into calibration, selection and test: the same for every number of tokens, so that no
run tests on what another one has seen."""

MAX_HELD_OUT = 4
"""Calibration batches at most that are kept from the statistics where mixes or swaps run over them."""

SELF_PROMPT_TOKENS = 1
SELF_SIDE_BY_SIDE = 8
"""Sequences sampled at a time: bounds the key-value cache."""

SELF_EVALUATION_SEED = 1 << 31
"""Far from seeds that people give, so that "self" is not evaluated on what it was calibrated on."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Three disjoint lists of batches, and where they came from.

    `n_gradient` batches of the calibration split, or all, run backward too. `held_out` are batches of
    calibration's part of the text that statistics do not see.
    """

    calibration: tuple[Batch, ...]
    selection: tuple[Batch, ...]
    test: tuple[Batch, ...]
    source: str
    n_gradient: int | None = None
    held_out: tuple[Batch, ...] = ()

    def holding_out(self) -> Splits:
        """Return the same with some calibration batches, spread evenly, kept from the statistics.

        Raises
        ------
        DataError
            If there is only one.
        """
        n = len(self.calibration)
        if n < 2:
            raise DataError(
                f"{self.source}: one calibration batch, and one more must be held out",
                hint="raise --tokens, or pass more batches",
            )
        n_out = min(MAX_HELD_OUT, max(1, n // 8))
        chosen = {(2 * index + 1) * n // (2 * n_out) for index in range(n_out)}
        parts: tuple[list[Batch], list[Batch]] = ([], [])
        for index, batch in enumerate(self.calibration):
            parts[index in chosen].append(batch)
        return replace(self, calibration=tuple(parts[0]), held_out=tuple(parts[1]))


def text_splits(
    network: Network, data: str | Path | None, *, n_tokens: int = CALIBRATION_TOKENS, seed: int = 0
) -> Splits:
    """Return splits for a language model.

    Parameters
    ----------
    network : Network
        Its tokenizer turns text into tokens.
    data : str, Path or None
        A text file, a folder of text files, token ids (.npy, .safetensors), "self" for text sampled from the
        model, or None for the English prose in the standard library's `pydoc_data.topics`.
    n_tokens : int
        Calibration tokens; selection and test take up to 2048 and 2560 more.
    seed : int
        Seeds the sampling of "self".

    Raises
    ------
    DataError
        If the data are missing, unreadable or too short; says how many tokens are needed.
    """
    length = sequence_length(network)
    wanted = (n_tokens, min(n_tokens, SELECTION_TOKENS), min(n_tokens, TEST_TOKENS))
    if str(data) == "self":
        ids = sample_self(network, sum(-(-n // length) for n in wanted), length, seed=seed)
        source = f"sampled from the model, seed {seed}"
    else:
        ids = read_tokens(network, data)
        source = "pydoc_data.topics" if data is None else str(data)
    return split_tokens(ids, wanted, length=length, source=source)


def split_tokens(
    ids: npt.NDArray[np.int64], wanted: tuple[int, int, int], *, length: int, source: str
) -> Splits:
    """Cut token ids [n] into sequences of each split's own part of the text.

    Raises
    ------
    DataError
        If a part is shorter than one sequence.
    """
    available = len(ids) // length
    counts = [max(1, n // length) for n in wanted]
    if available < len(counts):
        raise DataError(
            f"{source}: {len(ids)} tokens; three disjoint splits need at least {3 * length}, "
            f"and {sum(counts) * length} are wanted",
            hint="give a longer text with --data, or leave --data away for the built-in text",
        )
    first, second = (max(1, int(available * share)) for share in BOUNDARIES)
    second = min(max(second, first + 1), available - 1)
    parts = [
        _evenly(ids, n, start, stop, length=length)
        for n, start, stop in zip(counts, (0, first, second), (first, second, available), strict=True)
    ]
    n_gradient = max(1, GRADIENT_TOKENS // length, len(parts[0]) // GRADIENT_SHARE)
    return Splits(parts[0], parts[1], parts[2], source, n_gradient=n_gradient)


def _evenly(ids: npt.NDArray[np.int64], n: int, start: int, stop: int, *, length: int) -> tuple[Batch, ...]:
    """Take up to `n` of the sequences start .. stop, spread evenly."""
    n = min(n, stop - start)
    chosen = [start + index * (stop - start) // n for index in range(n)]
    return tuple(token_batch(torch.from_numpy(ids[i * length : (i + 1) * length])) for i in chosen)


def token_batch(ids: torch.Tensor) -> Batch:
    """Return the batch of one sequence of token ids [n]."""
    return {"input_ids": ids[None].long().clone(), "use_cache": False}


def sequence_length(network: Network) -> int:
    """Return the length of a sequence: 512, or less for a short context."""
    config = getattr(network.module, "config", None)
    return min(SEQUENCE_TOKENS, int(getattr(config, "max_position_embeddings", None) or SEQUENCE_TOKENS))


def read_tokens(network: Network, data: str | Path | None) -> npt.NDArray[np.int64]:
    """Return token ids [n] from any supported source; checked against the vocabulary."""
    path = None if data is None else Path(data)
    if path is not None and not path.exists():
        raise DataError(
            f"{path}: no such file or folder", hint="give a text file, a folder, .npy or .safetensors"
        )
    if path is not None and path.suffix in (".npy", ".safetensors"):
        ids = _read_ids(path)
    else:
        ids = _tokenize(network, builtin_text() if path is None else _read_text(path))
    vocabulary = _vocabulary_size(network)
    if len(ids) and vocabulary and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
        raise DataError(
            f"{data or 'built-in text'}: token ids {ids.min()} to {ids.max()}, expected below {vocabulary}",
            hint="tokenize with this model's tokenizer",
        )
    return ids


def builtin_text() -> str:
    """Return the prose of the standard library's help topics, in a fixed shuffled order."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(
            "this Python has no pydoc_data.topics", hint="give a text file with --data"
        ) from error
    names = sorted(topics)
    random.Random(0).shuffle(names)
    return "\n\n".join(topics[name] for name in names)


def _read_text(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}: not UTF-8 text ({error.reason})", hint="give plain text files"
            ) from error
    return "\n\n".join(texts)


def _tokenize(network: Network, text: str) -> npt.NDArray[np.int64]:
    if network.tokenizer is None:
        raise DataError(
            f"{network.source}: has no tokenizer, so text cannot be used",
            hint="give token ids with --data tokens.npy, or --data self",
        )
    return np.asarray(network.tokenizer(text, verbose=False)["input_ids"], np.int64)


def _read_ids(path: Path) -> npt.NDArray[np.int64]:
    try:
        ids: Any = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _stored_ids(path)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})", hint="save integers with numpy.save") from error
    if not isinstance(ids, np.ndarray) or not np.issubdtype(ids.dtype, np.integer):
        found = getattr(ids, "dtype", type(ids).__name__)
        raise DataError(f"{path}: holds {found}, expected integer token ids", hint="save one integer array")
    return ids.reshape(-1).astype(np.int64)


def _stored_ids(path: Path) -> npt.NDArray[Any]:
    from laq.io.safetensors import open_tensors

    tensors = open_tensors(path)
    name = next(iter(tensors), "") if len(tensors) == 1 else "input_ids"
    if name not in tensors:
        raise DataError(
            f"{path}: holds {len(tensors)} tensors, none called input_ids",
            hint="store token ids as `input_ids`",
        )
    if tensors[name].dtype[0] not in "IU":
        raise DataError(f"{path}: {name} holds {tensors[name].dtype}", hint="store integer token ids")
    return tensors[name].array()


def _vocabulary_size(network: Network) -> int:
    getter = getattr(network.module, "get_input_embeddings", None)
    return int(getter().weight.shape[0]) if getter is not None else 0


def sample_self(network: Network, n_sequences: int, length: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return sequences sampled at temperature 1, several side by side; int64 [n_sequences * length].

    Raises
    ------
    DataError
        If the network is not a language model of transformers.
    """
    if not hasattr(getattr(network.module, "config", None), "model_type"):
        raise DataError(
            f"{network.source}: text can only be sampled from causal language models of transformers",
            hint="pass batches",
        )
    generator = torch.Generator().manual_seed(seed)
    starts = range(0, n_sequences, SELF_SIDE_BY_SIDE)
    steps = track(
        range(len(starts) * (length - 1)), label="sampling from the model", total=len(starts) * (length - 1)
    )
    parts = [
        _sample(network, min(SELF_SIDE_BY_SIDE, n_sequences - start), islice(steps, length - 1), generator)
        for start in starts
    ]
    for _ in steps:  # lets the display finish
        pass
    return torch.cat([part.flatten() for part in parts]).numpy()


def _sample(network: Network, n: int, steps: Iterable[int], generator: torch.Generator) -> torch.Tensor:
    """Draw `n` sequences side by side, one token a step; int64 [n, 1 + steps]."""
    first = getattr(getattr(network.module, "config", None), "bos_token_id", None)
    vocabulary = _vocabulary_size(network)
    shape = (n, SELF_PROMPT_TOKENS)
    ids = (
        torch.full(shape, first)
        if isinstance(first, int)
        else torch.randint(vocabulary, shape, generator=generator)
    )
    cache: Any = None
    with torch.no_grad(), evaluation_mode(network.module):
        for _ in steps:
            output = network.module(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            probabilities = output.logits[:, -1].float().softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], 1)
    return ids


def evaluation_batches(
    network: Network, data: str | Path | None, *, n_tokens: int | None = None
) -> tuple[Batch, ...]:
    """Return all sequences of a file or "self", or `n_tokens` of them; without a file the test split."""
    if data is None:
        return text_splits(network, None).test
    length = sequence_length(network)
    if n_tokens is not None and n_tokens < length:
        raise DataError(
            f"--tokens {n_tokens} is less than one sequence of {length}", hint=f"--tokens {length} or more"
        )
    if str(data) == "self":
        n_sequences = max(1, (n_tokens or TEST_TOKENS) // length)
        ids = sample_self(network, n_sequences, length, seed=SELF_EVALUATION_SEED)
    else:
        ids = read_tokens(network, data)
    n = min(len(ids), n_tokens or len(ids)) // length
    if n == 0:
        raise DataError(f"{data}: {len(ids)} tokens, at least {length} are needed", hint="give a longer text")
    return tuple(token_batch(torch.from_numpy(ids[i * length : (i + 1) * length].copy())) for i in range(n))
