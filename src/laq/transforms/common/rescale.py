"""Scales of channels moved in every place of a network, and what its statistics become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from laq.core.errors import NetworkError
from laq.core.importance import Importance, importance_of
from laq.core.progress import track
from laq.core.stats import FloatArray, Stats
from laq.networks.module import Network, evaluation_mode
from laq.networks.swapped import replace_parameters_, sharing_parameters
from laq.quantizers.common.workers import side_by_side
from laq.transforms import Transformed, check_transformable
from laq.transforms.common.places import Place, find_places, output_of, probe

MAX_OCTAVES = 8.0
"""Octaves around their mean that factors may span to either side: types of 16 bits hold what is scaled so."""

SAME_OUTPUT = {torch.float32: 1e-3, torch.float64: 1e-3}
SAME_OUTPUT_ROUNDED = 0.05
"""Relative differences of logits up to which a network computes the same; the last for coarser types."""


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of one place, as those see them that choose factors.

    Parameters
    ----------
    place : Place
        Where.
    weights : tuple of float32 [n_rows, n_columns]
        The readers that will be quantized.
    importances : tuple of Importance
        What their errors cost.
    writer : float32 [n_channels, n], or None
        Rows of the linear that writes; None if a norm does.
    """

    place: Place
    weights: tuple[torch.Tensor, ...]
    importances: tuple[Importance, ...]
    writer: torch.Tensor | None

    @property
    def second_moments(self) -> torch.Tensor:
        """E[x^2] of each channel, shrunk; float64 [n_channels]."""
        diagonal = np.ascontiguousarray(np.diagonal(self.importances[0].hessian))
        return self.place.gathered(torch.from_numpy(diagonal).double())

    @property
    def squares(self) -> torch.Tensor:
        """Mean square over all readers' weights of each channel; float64 [n_channels]."""
        n_rows = sum(len(weight) for weight in self.weights)
        total = torch.stack([weight.double().square().sum(0) for weight in self.weights]).sum(0)
        return self.place.gathered(total / n_rows)


Choose = Callable[[Channels], torch.Tensor | None]
"""Returns float [n_channels], positive: what is written is divided by it, what reads multiplies by it.

None leaves the place as it is.
"""


@torch.no_grad()
def rescaled(network: Network, stats: Stats, choose: Choose) -> Transformed:
    """Move factors in every place of a network whose readers are quantized.

    Parameters
    ----------
    network, stats : Network, Stats
        Left as they are; what does not change is shared.
    choose : callable
        From the channels of a place, in the network as it was, to their factors; only their ratios matter.

    Raises
    ------
    NetworkError
        If no place is known, or the outputs do not stay what they were.
    """
    places = _known_places(network, stats)
    module = sharing_parameters(network.module)
    divisors: dict[str, FloatArray] = {}
    chosen = side_by_side(lambda place: choose(_channels(network.module, place, stats)), places)
    for place, found in zip(places, track(chosen, label="transforming", total=len(places)), strict=True):
        if found is None:
            continue
        factors = _normalized(found)
        replace_parameters_(module, place.moved(module, factors))
        divisors |= _divisors(place, factors, stats)
    made = replace(network, module=module)
    _check_same_output(network, made)
    return Transformed(made, stats.divided(divisors))


def _known_places(network: Network, stats: Stats) -> list[Place]:
    """Places all of whose quantized readers share one key of moments with nothing else."""
    check_transformable(network)
    users: dict[str, set[str]] = {}
    for name, uses in stats.uses.items():
        for use in uses:
            users.setdefault(use.columns, set()).add(name)
    places = []
    for place in find_places(network):
        names = {f"{path}.weight" for path in place.readers}
        keys = {use.columns for name in names for use in stats.uses.get(name, ())}
        if len(keys) == 1 and users[min(keys)] <= names:
            places.append(place)
    if not places:
        raise NetworkError(
            f"{network.source}: no place is known in {type(network.module).__name__} where scales can move",
            hint="leave --transform away",
        )
    return places


def _channels(module: nn.Module, place: Place, stats: Stats) -> Channels:
    names = [f"{path}.weight" for path in place.readers if stats.uses.get(f"{path}.weight")]
    writer = module.get_parameter(f"{place.writer}.weight").detach()
    return Channels(
        place=place,
        weights=tuple(module.get_parameter(name).detach().float() for name in names),
        importances=tuple(importance_of(stats, name) for name in names),
        writer=writer.float() if writer.ndim == 2 else None,
    )


def _normalized(factors: torch.Tensor) -> torch.Tensor:
    """Factors around 1, within `MAX_OCTAVES`; float32."""
    octaves = torch.log2(factors.double())
    octaves -= octaves.mean()
    return torch.exp2(octaves.clamp_(-MAX_OCTAVES, MAX_OCTAVES)).float()


def _divisors(place: Place, factors: torch.Tensor, stats: Stats) -> dict[str, FloatArray]:
    """By key, what the vectors of the moments are divided by: readers' inputs, the writer's gradients."""
    names = [f"{path}.weight" for path in place.readers]
    keys: Sequence[str] = [use.columns for name in names for use in stats.uses.get(name, ())]
    found = {keys[0]: place.spread(factors).numpy()}
    for use in stats.uses.get(f"{place.writer}.weight", ()):
        found[use.rows] = (1 / factors).numpy()
    return found


def _check_same_output(network: Network, made: Network) -> None:
    arguments = probe(network)
    with evaluation_mode(network.module, made.module):
        before, after = (output_of(one.module(**arguments)).double() for one in (network, made))
    allowed = SAME_OUTPUT.get(next(network.module.parameters()).dtype, SAME_OUTPUT_ROUNDED)
    difference = float((after - before).norm() / before.norm().clamp(min=1e-30))
    if not difference <= allowed:
        raise NetworkError(
            f"{network.source}: a transform would change its outputs by {difference:.2g} of their size",
            hint="leave --transform away",
        )
