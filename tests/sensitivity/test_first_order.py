"""Curves are gradients times what the quantizer changes, and gradients those of a plain backward pass."""

import numpy as np
import pytest
import torch
from torch import nn

from laq.core.formats import CANDIDATES, TRELLISES
from laq.core.scheme import ScaleFormat
from laq.networks import describe
from laq.sensitivity import Subject
from laq.sensitivity.common.gradients import MeanGradients
from laq.sensitivity.common.swaps import quantized_alone
from laq.sensitivity.first_order import FirstOrder, _raise_to_wider_
from laq.steps import calibrate

BITS4 = CANDIDATES.index(TRELLISES[4])


@pytest.fixture
def text_subject():
    transformers = pytest.importorskip("transformers", reason="needs the extra llm")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=0.25,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.LlamaForCausalLM(config)
    ids = torch.randint(50, (6, 1, 16), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": one} for one in ids]
    network = describe(module, architecture="transformers")
    stats = calibrate(network, batches[:4])
    return Subject(network, stats, "gptq", 32, ScaleFormat.LOG8, tuple(batches[4:]))


def plain_gradients(module, batches):
    """Of the mean over all predicted tokens, by one backward pass of everything."""
    module.zero_grad()
    module.eval()
    terms = [
        nn.functional.cross_entropy(
            module(**batch).logits[0, :-1], batch["input_ids"][0, 1:], reduction="none"
        )
        for batch in batches
    ]
    torch.cat(terms).mean().backward()
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    return found


def test_gradients_are_those_of_a_plain_backward_pass(text_subject):
    network = text_subject.network
    expected = plain_gradients(network.module, text_subject.batches)
    found = MeanGradients(network, text_subject.batches)
    assert {weight.kind for weight in network.weights} == {"tied", "linear"}
    for weight in network.weights:
        torch.testing.assert_close(found.of(weight.name), expected[weight.name], rtol=1e-4, atol=1e-6)


def test_the_module_keeps_its_mode_its_gradients_and_what_wants_some(text_subject):
    module = text_subject.network.module.train()
    names = [name for name, _ in module.named_parameters()]
    module.get_parameter(names[1]).requires_grad_(requires_grad=False)
    module.get_parameter(names[2]).grad = kept = torch.ones_like(module.get_parameter(names[2]))
    MeanGradients(text_subject.network, text_subject.batches)
    assert module.training
    assert not module.get_parameter(names[1]).requires_grad
    assert module.get_parameter(names[3]).requires_grad
    assert module.get_parameter(names[2]).grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert module.get_parameter(names[3]).grad is None
    assert not any("forward" in vars(child) for child in module.modules())


def test_curves_are_the_linear_term_of_what_the_quantizer_leaves(text_subject):
    """Where no wider format loses more by chance; nowhere less than the term itself."""
    measured = FirstOrder().measure(text_subject)
    (values,) = quantized_alone(text_subject, measured, [BITS4])
    gradients = plain_gradients(text_subject.network.module, text_subject.batches)
    equal = []
    for weight in measured.weights:
        change = (values[weight.name] - text_subject.network.weight(weight.name)) * gradients[weight.name]
        terms = change.double().numpy()
        if weight.row_permutation is not None:
            terms = terms[weight.row_permutation]
        if weight.column_order:
            terms = terms[:, measured.column_permutations[weight.column_order]]
        grid = weight.grid
        padded = np.zeros((grid.padded_rows, grid.padded_columns))
        padded[: grid.n_rows, : grid.n_columns] = terms
        tiles = padded.reshape(grid.n_row_blocks, 16, grid.n_groups, grid.group_size).sum((1, 3))
        found, scale = weight.loss_nats[BITS4], np.abs(tiles).max()
        assert (found >= np.abs(tiles) - 1e-3 * scale).all()
        equal.append(np.isclose(found, np.abs(tiles), rtol=1e-3, atol=1e-4 * scale).ravel())
    assert np.concatenate(equal).mean() > 0.5


def test_a_weight_without_influence_loses_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32))
    with torch.no_grad():
        module[4].weight[:, 32:] = 0
    network = describe(module)
    batches = list(torch.randn(320, 64, generator=torch.Generator().manual_seed(0)).split(32))
    subject = Subject(network, calibrate(network, batches), "rtn", 32, ScaleFormat.LOG8, tuple(batches[-2:]))
    weights = {weight.name: weight for weight in FirstOrder().measure(subject).weights}
    second = weights["2.weight"]
    rows = np.arange(64) if second.row_permutation is None else second.row_permutation
    silent = [set(rows[start : start + 16].tolist()) <= set(range(32, 64)) for start in range(0, 64, 16)]
    assert any(silent)
    assert (second.loss_nats[BITS4][silent] == 0).all()
    assert (second.loss_nats[BITS4][~np.array(silent)] > 0).any()


def test_formats_are_raised_to_wider_ones_of_their_family_not_to_equals():
    before = np.random.default_rng(0).random((len(CANDIDATES), 3, 4), np.float32)
    after = before.copy()
    _raise_to_wider_(after)
    equals = 0
    for i, one in list(enumerate(CANDIDATES))[1:]:
        family = [(j, c) for j, c in enumerate(CANDIDATES) if type(c) is type(one)]
        equals += sum(c.n_levels == one.n_levels for _, c in family) - 1
        wider = [before[j] for j, c in family if c.n_levels > one.n_levels]
        np.testing.assert_array_equal(after[i], np.max([before[i], *wider], axis=0))
    assert equals
