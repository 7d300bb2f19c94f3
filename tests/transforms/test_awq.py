import numpy as np

from laq.core.importance import importance_of
from laq.transforms.awq import EXPONENTS, Awq


def exponents(network, made, stats, name):
    """Slope of log factors over log root mean square of inputs, and the largest distance from that line."""
    factors = (made.weight(name) / network.weight(name)).median(0).values.log().double().numpy()
    sizes = 0.5 * np.log(np.diagonal(importance_of(stats, name).hessian).astype(np.float64))
    slope, constant = np.polyfit(sizes, factors, 1)
    return slope, np.abs(factors - slope * sizes - constant).max()


def test_factors_are_a_power_of_the_grid_of_the_inputs_size(uneven, encoding):
    """Equation 4 of the paper: s = s_X ^ alpha."""
    network, stats = uneven
    made = Awq().apply(network, stats, encoding).network
    found = [
        exponents(network, made, stats, f"model.layers.{layer}.mlp.down_proj.weight") for layer in (0, 1)
    ]
    assert all(distance < 1e-3 for _, distance in found)
    assert all(min(abs(slope - known) for known in (0.0, *EXPONENTS)) < 1e-3 for slope, _ in found)
    assert any(slope > 0.1 for slope, _ in found), "inputs are uneven"
