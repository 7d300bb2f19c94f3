import torch

from laq.transforms.column_norm import ColumnNorm


def spread_of_columns(network, name):
    """Standard deviation over columns of the logarithm of their root mean square."""
    return float(network.weight(name).square().mean(0).log().mul(0.5).std())


def test_columns_become_alike(uneven, encoding):
    network, stats = uneven
    made = ColumnNorm().apply(network, stats, encoding).network
    name = "model.layers.0.mlp.down_proj.weight"
    before, after = spread_of_columns(network, name), spread_of_columns(made, name)
    assert before > 0.3
    # nothing is left where the power is 1, half of it where the power is 1/2
    assert after < 1e-5 or abs(after - before / 2) < 1e-3


def test_the_gain_gives_what_columns_take(uneven, encoding):
    network, stats = uneven
    made = ColumnNorm().apply(network, stats, encoding).network
    gain, weight = (f"model.layers.1.{name}.weight" for name in ("post_attention_layernorm", "mlp.gate_proj"))
    factors = (network.module.get_parameter(gain) / made.module.get_parameter(gain)).detach()
    assert float(factors.log().std()) > 0.1
    torch.testing.assert_close(made.weight(weight), network.weight(weight) * factors)
