import copy

import torch

from laq.networks.transformers import describe_causal
from laq.transforms.equalization import Equalization


def ranges(network, layer):
    """Largest absolute value of each channel between up and down: as written, and as read."""
    written = network.weight(f"model.layers.{layer}.mlp.up_proj.weight").abs().amax(1)
    read = network.weight(f"model.layers.{layer}.mlp.down_proj.weight").abs().amax(0)
    return written, read


def test_each_channel_has_one_range_on_both_sides(uneven, encoding):
    """Equation 10 of the paper: r1_i = r2_i, up to one factor for all channels."""
    network, stats = uneven
    made = Equalization().apply(network, stats, encoding).network
    before, after = (read / written for written, read in (ranges(one, 0) for one in (network, made)))
    assert float(before.log().std()) > 0.5
    assert float(after.log().std()) < 1e-5


def test_the_product_of_ranges_stays(uneven, encoding):
    network, stats = uneven
    made = Equalization().apply(network, stats, encoding).network
    products = [written * read for written, read in (ranges(one, 1) for one in (network, made))]
    torch.testing.assert_close(*products)


def test_gains_of_norms_are_left_alone(uneven, encoding):
    network, stats = uneven
    made = Equalization().apply(network, stats, encoding).network
    for name, parameter in network.module.named_parameters():
        if parameter.ndim == 1:
            assert made.module.get_parameter(name) is parameter


def test_query_heads_that_share_a_value_head_share_its_factor(uneven, encoding):
    network, stats = uneven
    made = Equalization().apply(network, stats, encoding).network
    name = "model.layers.0.self_attn.o_proj.weight"
    factors = (made.weight(name) / network.weight(name))[0].view(2, 2, 16)  # [kv heads, repeats, width]
    torch.testing.assert_close(factors[:, 0], factors[:, 1])
    assert float(factors.log().std()) > 0.1


def test_a_linear_that_writes_nothing_is_left_alone(uneven, encoding):
    network = copy.deepcopy(uneven[0].module)
    with torch.no_grad():
        network.model.layers[0].mlp.up_proj.weight.zero_()
    described = describe_causal(network)
    made = Equalization().apply(described, uneven[1], encoding).network
    assert not made.weight("model.layers.0.mlp.up_proj.weight").any()
    assert torch.isfinite(made.weight("model.layers.0.mlp.down_proj.weight")).all()
    before, after = (ranges(one, 1)[0] for one in (described, made))
    assert not torch.equal(before, after)
