"""Block by block gives what one plain pass gives; the module is left as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from laq.calibration.collect import calibrate, hash_batches, random_signs
from laq.core.errors import CalibrationError, DataError
from laq.networks import describe as describe_any


def describe(module):
    """Language models are calibrated block by block, any other module as a whole."""
    return describe_any(module, architecture="transformers" if hasattr(module, "lm_head") else "module")


class Plain:
    """The definition: hooks on everything, one forward and one backward through the whole network."""

    def __init__(self, module, batches, seed):
        self.inputs, self.gradients, self.ids = {}, {}, []
        generator = torch.Generator().manual_seed(seed)
        hooks = []
        for path, child in module.named_modules():
            if isinstance(child, nn.Linear):
                hooks.append(child.register_forward_hook(self._linear(path)))
            if isinstance(child, nn.Embedding):
                hooks.append(child.register_forward_hook(self._embedding(path)))
        self.probabilities = []
        for batch in batches:
            output = module(**batch) if isinstance(batch, dict) else module(*batch)
            logits = output if isinstance(output, torch.Tensor) else output.logits
            flat = logits.flatten(0, -2)
            probabilities = flat.detach().softmax(-1)
            self.probabilities.append(probabilities)
            signs = random_signs(flat.shape, generator)
            surprise = (flat.log_softmax(-1) * probabilities.sqrt() * signs).sum()
            surprise.backward()
        for hook in hooks:
            hook.remove()
        module.zero_grad()

    def _linear(self, path):
        def hook(module, args, output):
            self.inputs.setdefault(path, []).append(args[0].detach().flatten(0, -2))
            output.register_hook(lambda g: self.gradients.setdefault(path, []).append(g.flatten(0, -2)))

        return hook

    def _embedding(self, path):
        def hook(module, args, output):
            self.ids.append(args[0].flatten())
            output.register_hook(lambda g: self.gradients.setdefault(path, []).append(g.flatten(0, -2)))

        return hook


def cat(parts):
    return torch.cat(parts).double().numpy()


def close(mine, expected):
    np.testing.assert_allclose(mine, expected, rtol=2e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("tied", [True, False])
def test_block_by_block_equals_one_plain_pass(llama, batches, tied):
    module = llama(tied=tied).eval()
    network = describe(module)
    assert network.blocks == "model.layers"
    stats = calibrate(network, batches, seed=3)
    plain = Plain(module, batches, 3)
    assert stats.n_tokens == 48
    for weight in network.weights:
        for path in weight.modules:
            if path not in plain.inputs:
                continue
            x = cat(plain.inputs[path])
            use = stats.uses[weight.name][0]
            close(stats.moments[use.columns].second, x.T @ x / len(x))
            close(stats.moments[use.columns].fourth, (x**4).mean(0))
            if path == "lm_head":
                continue
            g = cat(plain.gradients[path])
            close(stats.moments[use.rows].second, (g**2).mean(0))
            close(stats.moments[use.rows].fourth, (g**4).mean(0))


@pytest.mark.parametrize("tied", [True, False])
def test_output_head_has_the_mean_over_labels_in_closed_form(llama, batches, tied):
    module = llama(tied=tied).eval()
    network = describe(module)
    stats = calibrate(network, batches, seed=3)
    p = cat(Plain(module, batches, 3).probabilities)
    name = next(weight.name for weight in network.weights if "lm_head" in weight.modules)
    close(stats.moments[stats.uses[name][0].rows].second, (p * (1 - p)).mean(0))


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_has_the_gradient_of_its_output_and_how_often_rows_are_used(llama, batches, tied):
    module = llama(tied=tied).eval()
    stats = calibrate(describe(module), batches, seed=3)
    plain = Plain(module, batches, 3)
    use = stats.uses["model.embed_tokens.weight"][-1]
    g = cat(plain.gradients["model.embed_tokens"])
    close(stats.moments[use.columns].second, g.T @ g / len(g))
    frequency = torch.bincount(torch.cat(plain.ids), minlength=50).double().numpy() / 48
    close(stats.moments[use.rows].second, frequency)


def test_gradients_at_the_logits_have_the_covariance_of_the_true_fisher():
    module = nn.Linear(4, 6)
    batch = (torch.randn(1, 4, generator=torch.Generator().manual_seed(1)).expand(20000, 4),)
    plain = Plain(module, [batch], 0)
    g, p = cat(plain.gradients[""]), plain.probabilities[0][0].double().detach().numpy()
    np.testing.assert_allclose(g.T @ g / len(g), np.diag(p) - np.outer(p, p), atol=0.01)
    stats = calibrate(describe(nn.Sequential(module)), [batch])
    np.testing.assert_allclose(stats.moments["0.weight:rows"].second, p * (1 - p), rtol=0.05)


@pytest.mark.parametrize("n_gradient", [1, 2])
def test_batches_that_only_run_forward_add_to_the_moments_of_inputs_alone(llama, batches, n_gradient):
    network = describe(llama())
    everything = calibrate(network, batches, seed=3)
    some = calibrate(network, batches, n_gradient=n_gradient, seed=3)
    chosen = [batches[0]] if n_gradient == 1 else [batches[0], batches[1]]
    graded = calibrate(network, chosen, seed=3)
    assert some.n_tokens == 48
    for key, moments in some.moments.items():
        same = everything if key.startswith("model.layers") and key.endswith(":input") else graded
        assert moments.n_samples == same.moments[key].n_samples, key
        close(moments.second, same.moments[key].second)
        close(moments.fourth, same.moments[key].fourth)
    assert some.data_hash == everything.data_hash


def test_networks_run_as_a_whole_may_run_some_batches_forward_only():
    network = describe(small_network())
    batches = [(x,) for x in torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0))]
    everything, some = (calibrate(network, batches, n_gradient=n) for n in (4, 1))
    graded = calibrate(network, batches[:1])
    assert some.n_tokens == 28
    for key, moments in some.moments.items():
        close(moments.second, (everything if key.endswith(":input") else graded).moments[key].second)


def test_siblings_share_the_moments_of_their_input(llama, batches):
    uses = calibrate(describe(llama()), batches).uses
    prefix = "model.layers.0."
    keys = {
        name: uses[f"{prefix}{name}.weight"][0].columns
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    }
    assert set(keys.values()) == {f"{prefix}self_attn.q_proj.weight:input"}
    gate, up, down = (uses[f"{prefix}mlp.{name}_proj.weight"][0].columns for name in ("gate", "up", "down"))
    assert gate == up != down
    rows = [use[0].rows for use in uses.values()]
    assert len(set(rows)) == len(rows)


def test_tied_embedding_has_two_uses_and_an_untied_one_has_one(llama, batches):
    name = "model.embed_tokens.weight"
    assert len(calibrate(describe(llama(tied=True)), batches).uses[name]) == 2
    untied = calibrate(describe(llama(tied=False)), batches).uses
    assert len(untied[name]) == len(untied["lm_head.weight"]) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_module_is_left_as_it_was(llama, batches, fails):
    module = llama()
    module.train()
    module.model.layers[1].mlp.eval()
    module.model.norm.weight.requires_grad = False
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    training = [child.training for child in module.modules()]
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    if fails:
        with pytest.raises(IndexError):
            calibrate(describe(module), [{"input_ids": torch.tensor([[99]]), "use_cache": False}])
    else:
        calibrate(describe(module), batches)
    assert [child.training for child in module.modules()] == training
    assert [parameter.requires_grad for parameter in module.parameters()] == wanted
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    for child in module.modules():
        assert not child._forward_hooks
        assert not child._forward_pre_hooks


def test_same_seed_gives_the_same_statistics_and_another_one_does_not(llama, batches):
    network = describe(llama())
    first, again, other = (calibrate(network, batches, seed=seed) for seed in (1, 1, 2))
    key = "model.layers.0.mlp.down_proj.weight:rows"
    assert np.array_equal(first.moments[key].second, again.moments[key].second)
    assert not np.array_equal(first.moments[key].second, other.moments[key].second)
    assert first.data_hash == again.data_hash == hash_batches(batches)


def small_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))


def test_network_without_blocks_is_run_as_a_whole():
    module = small_network()
    batches = [(x,) for x in torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0))]
    stats = calibrate(describe(module), batches, seed=5)
    plain = Plain(module, batches, 5)
    for path in ("0", "2"):
        use = stats.uses[f"{path}.weight"][0]
        x, g = cat(plain.inputs[path]), cat(plain.gradients[path])
        close(stats.moments[use.columns].second, x.T @ x / len(x))
        close(stats.moments[use.rows].second, (g**2).mean(0))
    assert stats.n_tokens == 28


def test_merged_halves_are_the_statistics_of_all_batches():
    network = describe(small_network())
    batches = [(x,) for x in torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0))]
    merged = calibrate(network, batches[:2]).merge(calibrate(network, batches[2:]))
    whole = calibrate(network, batches)
    assert merged.n_tokens == whole.n_tokens
    key = whole.uses["2.weight"][0].columns
    np.testing.assert_allclose(merged.moments[key].second, whole.moments[key].second, rtol=1e-5, atol=1e-7)


def test_no_data_is_refused():
    with pytest.raises(DataError, match="no calibration data"):
        calibrate(describe(small_network()), [])


def test_weight_that_is_never_used_is_named():
    module = small_network()
    module.spare = nn.Linear(3, 3)
    module.forward = lambda x: nn.Sequential.forward(nn.Sequential(module[0], module[1], module[2]), x)
    with pytest.raises(CalibrationError, match=r"never used spare\.weight\nhint: .*--keep"):
        calibrate(describe(module), [(torch.ones(2, 6),)])


def test_output_that_is_not_finite_is_refused():
    module = small_network()
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate(describe(module), [(torch.full((2, 6), torch.nan),)])


def test_hash_depends_on_every_token():
    one, other = torch.arange(8)[None], torch.arange(8)[None].clone()
    other[0, 7] = 0
    assert hash_batches([{"input_ids": one}]) != hash_batches([{"input_ids": other}])
    assert hash_batches([{"input_ids": one}]) == hash_batches([(one.clone(),)])


class TwiceThrough(nn.Module):
    """Blocks that do not follow each other: the second one adds the embedding again."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(2))
        self.lm_head = nn.Linear(32, 50, bias=False)

    def forward(self, input_ids, use_cache=False):
        embedded = self.embed(input_ids)
        return self.lm_head(self.layers[1](self.layers[0](embedded) + embedded))


def test_blocks_that_are_not_a_chain_are_calibrated_as_a_whole(batches):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TwiceThrough()
    network = describe(module)
    assert network.blocks == "layers"
    found = calibrate(network, batches, seed=3)
    plain = calibrate(describe_any(module), batches, seed=3)
    assert set(found.moments) == set(plain.moments)
    for key, moments in plain.moments.items():
        assert np.array_equal(found.moments[key].second, moments.second), key


def test_an_embedding_that_scales_its_rows_costs_the_square_of_its_scale(batches):
    class Scaled(nn.Embedding):
        embed_scale = 4.0  # a power of two: nothing is rounded on the way

        def forward(self, ids):
            return super().forward(ids) * self.embed_scale

    def network(embedding):
        head = nn.Linear(32, 50, bias=False)
        with torch.no_grad():
            head.weight.copy_(torch.randn(50, 32, generator=torch.Generator().manual_seed(5)))
        return describe_any(nn.Sequential(embedding, head))

    plain = nn.Embedding(50, 32)
    scaled = Scaled(50, 32)
    with torch.no_grad():
        scaled.weight.copy_(plain.weight / 4)
    ids = [(one["input_ids"],) for one in batches]
    first, second = (calibrate(network(one), ids) for one in (plain, scaled))
    key = "0.weight:gradient"
    assert np.allclose(second.moments[key].second, 16 * first.moments[key].second, rtol=1e-3, atol=1e-8)


def test_padded_batches_are_refused(llama):
    batch = {
        "input_ids": torch.zeros(1, 8, dtype=torch.long),
        "attention_mask": torch.tensor([[0] + [1] * 7]),
    }
    with pytest.raises(DataError, match="padded"):
        calibrate(describe(llama()), [batch])


def test_a_weight_shared_between_blocks_is_calibrated_as_a_whole(llama, batches):
    module = llama()
    module.model.layers[1].mlp.up_proj.weight = module.model.layers[0].mlp.up_proj.weight
    shared, single = (calibrate(describe(one), batches).moments for one in (module, llama()))
    name = "model.layers.0.mlp.up_proj.weight:rows"
    assert shared[name].second.sum() > 1.2 * single[name].second.sum()


class Threaded(nn.Module):
    """Blocks that return two things, or are told something about what the one before returned."""

    def __init__(self, *, pairs):
        super().__init__()
        self.pairs = pairs
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(Scaling() for _ in range(3))
        self.lm_head = nn.Linear(32, 50, bias=False)

    def forward(self, input_ids, use_cache=False):
        hidden, scale = self.embed(input_ids), torch.ones(())
        for layer in self.layers:
            output = layer(hidden, scale=scale, pairs=self.pairs)
            hidden, scale = output if self.pairs else (output, output.detach().abs().mean())
        return self.lm_head(hidden)


class Scaling(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, hidden, *, scale, pairs):
        hidden = torch.tanh(self.linear(hidden * scale))
        return (hidden, hidden.detach().abs().mean()) if pairs else hidden


@pytest.mark.parametrize("pairs", [False, True])
def test_blocks_that_need_the_one_before_are_not_skipped(batches, pairs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Threaded(pairs=pairs)
    network = describe(module)
    assert network.blocks == "layers"
    everything, some = (calibrate(network, batches, n_gradient=n, seed=3) for n in (3, 1))
    for number in range(3):
        key = f"layers.{number}.linear.weight:input"
        assert some.moments[key].n_samples == 48
        close(some.moments[key].second, everything.moments[key].second)
