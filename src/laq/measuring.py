"""How a network is measured: names of methods as plans say them, and what may go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from laq.core.correction import check_corrections
from laq.core.curve import Curves
from laq.core.errors import DataError, RequestError
from laq.core.formats import PRODUCT, formats_of
from laq.core.low_rank import ranks_of
from laq.core.outliers import share_text, shares_of
from laq.core.product import PRODUCT_CODES
from laq.core.scale_units import ScalePer
from laq.core.scheme import StoredAs, allowed_under, stored_as
from laq.core.stats import Stats
from laq.networks import Batch, Network
from laq.quantizers import quantizer_of
from laq.quantizers.common.encoding import Encoding
from laq.ranges import RANGES
from laq.runtime.result import archive_fixed_bytes
from laq.sensitivity import SENSITIVITIES, Subject
from laq.sensitivity.common.mixes import calibrated, check_mixes
from laq.transforms import Transformed, transformed, transforms_of


@dataclass(frozen=True, slots=True)
class Measuring:
    """How a network is transformed, encoded and measured, as plans and curves say it.

    Parameters
    ----------
    quantizer : str
        Method that picks codes.
    range : str
        Method that chooses scales and zero points of integers.
    stored : StoredAs
        Group sizes and scales.
    transforms : tuple of str
        Methods that the network goes through first.
    sensitivity, mixes, seed, formats, low_rank, outliers
        See `laq.steps.measure`.
    """

    quantizer: str
    range: str
    stored: StoredAs
    transforms: tuple[str, ...] = ()
    sensitivity: str = "fisher"
    mixes: int = 0
    seed: int = 0
    formats: str = "all"
    low_rank: int | str = 0
    outliers: float | str = 0

    @property
    def needs_held_out(self) -> bool:
        """Whether it runs the network on data that the statistics must not have seen."""
        return self.mixes > 0 or SENSITIVITIES.get(self.sensitivity).runs_network

    def check_batches(self, batches: Sequence[Batch]) -> None:
        """Raise DataError if there are none, and they are needed."""
        if self.needs_held_out and not batches:
            raise DataError(
                "mixes, and sensitivities that run the network, need data that the statistics did not see",
                hint="pass them: batches=[...]",
            )

    def encoding(self) -> Encoding:
        """Return how weights are encoded: the method itself, and the rest."""
        method = quantizer_of(self.quantizer, self.range, self.stored.scale_per)
        return Encoding(method, self.stored.group_sizes[0], self.stored.scale_format)

    def to_json(self) -> dict[str, int | str]:
        """Return everything, in numbers and texts."""
        return {
            "quantizer": self.quantizer,
            "range": self.range,
            "group size": self.stored.group_size,
            "scale format": self.stored.scale_format.value,
            "scale per": self.stored.scale_per.value,
            "transforms": ",".join(self.transforms) or "none",
            "sensitivity": self.sensitivity,
            "low rank": str(self.low_rank),
            "outliers": share_text(self.outliers),
            "mixes": self.mixes,
            "formats": self.formats,
            "seed": self.seed,
        }

    def as_in(self, curves: Curves) -> Measuring:
        """Return the same with everything that curves say of themselves in place of its own."""
        return replace(
            self,
            quantizer=curves.quantizer,
            range=curves.range,
            stored=curves.stored,
            transforms=curves.transforms,
            sensitivity=curves.sensitivity,
            low_rank=curves.low_rank,
            outliers=curves.outliers,
        )


def measuring_of(  # noqa: PLR0913 - the options of a command, all by keyword
    *,
    quantizer: str,
    range: str,
    group_size: int | str | None,
    scale_format: str | None,
    scale_per: str,
    transform: str | None,
    sensitivity: str,
    mixes: int,
    seed: int,
    formats: str,
    low_rank: int | str,
    outliers: float | str,
) -> Measuring:
    """Return how a network is measured with the options of `laq.steps.measure`.

    Raises
    ------
    RequestError
        If there is no such method, group size or scale format, mixes are too few, or what is asked for
        cannot go together.
    """
    stored = stored_as(formats, group_size=group_size, scale_format=scale_format, scale_per=scale_per)
    names = transforms_of(transform)
    measuring = Measuring(
        quantizer, range, stored, names, sensitivity, mixes, seed, formats, low_rank, outliers
    )
    _check_shared_scales(measuring)
    quantizer_of(quantizer, range)
    if mixes:
        check_mixes(mixes)
    SENSITIVITIES.get(sensitivity)
    _check_together(measuring)
    return measuring


def transform_network(network: Network, stats: Stats, measuring: Measuring) -> Transformed:
    """Return what is measured and quantized in place of `network`; see `laq.transforms`."""
    return transformed(network, stats, measuring.transforms, measuring.encoding())


def measure_transformed(
    original: Network, made: Transformed, measuring: Measuring, *, batches: tuple[Batch, ...] = ()
) -> Curves:
    """Measure what transforms made of a network; see `laq.steps.measure`."""
    network, stats, stored = made.network, made.stats, measuring.stored
    group_size, *others = stored.group_sizes
    subject = Subject(
        network,
        stats,
        measuring.quantizer,
        group_size,
        stored.scale_format,
        batches,
        measuring.seed,
        measuring.range,
        allowed_under(stored.scale_per, formats_of(measuring.formats)),
        ranks_of(measuring.low_rank),
        products=PRODUCT_CODES if measuring.formats == PRODUCT else (),
        shares=shares_of(measuring.outliers),
        other_group_sizes=tuple(others),
        scale_per=stored.scale_per,
    )
    measured = SENSITIVITIES.get(measuring.sensitivity)().measure(subject)
    ways = (*measured.weights, *measured.alternatives)
    curves = Curves(
        weights=measured.weights,
        column_permutations=measured.column_permutations,
        scale_format=stored.scale_format,
        scale_per=stored.scale_per,
        quantizer=measuring.quantizer,
        range=measuring.range,
        fixed_bytes=archive_fixed_bytes(network, ways, measured.column_permutations, stored),
        original_bytes=original.original_bytes,
        n_params=original.n_params,
        source_hash=original.content_hash(),
        data_hash=stats.data_hash,
        transforms=measuring.transforms,
        sensitivity=measuring.sensitivity,
        alternatives=measured.alternatives,
        low_rank=str(measuring.low_rank),
        outliers=share_text(measuring.outliers),
    )
    if not measuring.mixes:
        return curves
    n_mixes, seed = measuring.mixes, measuring.seed
    return calibrated(curves, network, stats, batches, n_mixes=n_mixes, seed=seed, formats=measuring.formats)


def _check_shared_scales(measuring: Measuring) -> None:
    """Raise RequestError for what does not look at units that are larger than a group."""
    per, range, sensitivity = measuring.stored.scale_per, measuring.range, measuring.sensitivity
    if per is ScalePer.GROUP:
        return
    ranges = [name for name in RANGES.names() if RANGES.get(name).serves_units]
    sensitivities = [name for name in SENSITIVITIES.names() if not SENSITIVITIES.get(name).runs_network]
    if range not in ranges or sensitivity not in sensitivities or measuring.mixes:
        others = f", range {range!r}, sensitivity {sensitivity!r}, {measuring.mixes} mixes"
        raise RequestError(
            f"a scale per {per.value} is not for all methods{others}",
            hint=f"good combinations: --scale-per {per.value} --range {' | '.join(ranges)} "
            f"--sensitivity {' | '.join(sensitivities)}, without --mixes; "
            f"--scale-per {ScalePer.GROUP.value} with all others",
        )


def _check_together(measuring: Measuring) -> None:
    """Raise RequestError for what cannot be measured together, or is no correction."""
    formats_of(measuring.formats)
    corrects = check_corrections(measuring.low_rank, measuring.outliers)
    chooses, is_product = len(measuring.stored.group_sizes) > 1, measuring.formats == PRODUCT
    if is_product and (corrects or chooses):
        raise RequestError(
            "product codes have neither corrections nor groups",
            hint="leave --low-rank, --outliers and --group-size away, or --format product",
        )
    if (is_product or corrects or chooses) and (measuring.mixes or measuring.sensitivity != "fisher"):
        raise RequestError(
            "corrections, product codes and several group sizes are measured by fisher, without mixes",
            hint="leave --sensitivity and --mixes away, or --low-rank, --outliers, --group-size auto and "
            "--format product",
        )
