"""What plans are made from: statistics and curves, taken now, half-way before, or by `laq measure`."""

from __future__ import annotations

from pathlib import Path

from laq.calibration.collect import hash_batches
from laq.calibration.data import Splits
from laq.checkpoint import Checkpoint
from laq.core.curve import Curves
from laq.core.errors import RequestError
from laq.core.stats import Stats
from laq.measuring import Measuring, measure_transformed, transform_network
from laq.networks import Network
from laq.resources import check_resources
from laq.steps import calibrate
from laq.transforms import Transformed

Measurement = tuple[Splits, Transformed, Curves]
"""The data, with what was held out of it, what is quantized in place of the network, and its curves."""

NOT_IN_CURVES = ("mixes", "formats", "seed")
"""Of what measuring depends on, what curves do not say."""


def measurement(
    network: Network, splits: Splits, measuring: Measuring, *, kept: Checkpoint | None
) -> Measurement:
    """Calibrate and measure what a checkpoint does not hold yet."""
    if measuring.needs_held_out:
        splits = splits.holding_out()
    check_resources(network, splits.calibration, n_gradient=splits.n_gradient)
    stats = None if kept is None else kept.stats()
    if stats is None:
        stats = calibrate(network, splits, seed=measuring.seed)
        if kept is not None:
            stats.save(kept.folder / "stats")
    made = transform_network(network, stats, measuring)
    curves = None if kept is None else kept.curves()
    if curves is None:
        curves = measure_transformed(network, made, measuring, batches=splits.held_out)
        if kept is not None:
            curves.save(kept.folder / "curves")
    return splits, made, curves


def begin(kept: Checkpoint, network: Network, splits: Splits, measuring: Measuring) -> None:
    """Tie a checkpoint to what its parts depend on; RequestError if it was begun with something else."""
    kept.begin(
        {
            "network": network.content_hash(),
            "weights": [weight.name for weight in network.weights],
            "data": hash_batches(splits.calibration),
            **measuring.to_json(),
        }
    )


def reopened(network: Network, splits: Splits, measuring: Measuring, *, folder: Path) -> Measurement:
    """Take what `laq measure` wrote; refuse what was measured otherwise, or on other data."""
    stats, curves = Stats.open(folder / "stats"), Curves.open(folder / "curves")
    if stats.data_hash != curves.data_hash:
        raise RequestError(f"{folder}: stats and curves are not of the same run", hint="measure again")
    network.check_same(curves.source_hash, (weight.name for weight in curves.weights))
    _check_same(curves, measuring)
    if measuring.mixes and curves.gains is None:
        raise RequestError(
            f"{folder}: measured without mixes, asked for {measuring.mixes}",
            hint="measure again with --mixes",
        )
    if measuring.needs_held_out or curves.gains is not None:
        splits = splits.holding_out()
    if hash_batches(splits.calibration) != stats.data_hash:
        raise RequestError(
            f"measured on other data than {splits.source}: its selection and test splits may overlap",
            hint="give the same --data, --tokens and --seed as for laq measure",
        )
    return splits, transform_network(network, stats, measuring), curves


def _check_same(curves: Curves, measuring: Measuring) -> None:
    """Refuse settings that differ from those a measurement was made with."""
    found, asked = (
        tuple(value for name, value in each.to_json().items() if name not in NOT_IN_CURVES)
        for each in (measuring.as_in(curves), measuring)
    )
    if asked != found:
        raise RequestError(
            "measured with quantizer, range, group size, scales, transforms, sensitivity, low rank, "
            f"outliers {found}, asked for {asked}",
            hint="measure again, or ask for the same",
        )
