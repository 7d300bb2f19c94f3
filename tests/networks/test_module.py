"""What of a module is a weight, what is kept, and what is refused."""

import pytest
import torch
from torch import nn

from laq.core.errors import NetworkError, RequestError
from laq.networks import describe
from laq.networks.module import evaluation_mode, run_logits


class Tied(nn.Module):
    """An embedding that is also the head, a norm, and a convolution."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(48, 32)
        self.norm = nn.LayerNorm(32)
        self.conv = nn.Conv1d(32, 32, 1)
        self.head = nn.Linear(32, 48, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_one_and_everything_else_is_kept_with_a_reason():
    network = describe(Tied())
    (weight,) = network.weights
    assert (weight.name, weight.kind, weight.modules) == ("embed.weight", "tied", ("embed", "head"))
    reasons = {kept.name: kept.reason for kept in network.kept}
    assert reasons["norm.weight"] == "not a matrix"
    assert reasons["conv.weight"] == "not a linear or embedding weight"
    assert network.n_params == sum(p.numel() for p in Tied().parameters())
    assert network.original_bytes == 4 * network.n_params


def test_hash_is_of_the_content_and_not_of_what_is_kept():
    module = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    network = describe(module)
    assert network.content_hash() == network.keeping("^0").content_hash()
    with pytest.raises(RequestError, match=r"another --keep: 0\.weight"):
        network.keeping("^0").check_same(network.content_hash(), [w.name for w in network.weights])
    before = network.content_hash()
    with torch.no_grad():
        module[1].bias[0] += 1
    with pytest.raises(RequestError, match="another network"):
        network.check_same(before, [w.name for w in network.weights])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m[0].weight.data.fill_(float("nan")), "NaN or Inf in 0.weight"),
        (lambda m: m[1].bias.data.fill_(float("inf")), "NaN or Inf in 1.bias"),
        (lambda m: m.register_buffer("phase", torch.zeros(2, dtype=torch.complex64)), "phase .complex64"),
    ],
)
def test_what_cannot_be_used_is_named(change, words):
    module = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    change(module)
    with pytest.raises(NetworkError, match=words):
        describe(module)


@pytest.mark.parametrize("module", [nn.Linear(4, 4), nn.Sequential(nn.ReLU())])
def test_modules_without_layers_to_replace_are_refused(module):
    with pytest.raises(NetworkError):
        describe(module)


@pytest.mark.parametrize("pattern", ["(", "nothing", "."])
def test_patterns_that_cannot_be_meant_are_refused(pattern):
    with pytest.raises(NetworkError, match="keep"):
        describe(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))).keeping(pattern)


def test_evaluation_mode_is_put_back_for_every_part():
    module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluation_mode(module):
        assert not any(child.training for child in module.modules())
    assert [child.training for child in module.modules()] == [True, True, False]


def test_a_forward_without_logits_is_refused():
    with pytest.raises(NetworkError, match="returned tuple"):
        run_logits(nn.Identity(), [(1, 2)])
