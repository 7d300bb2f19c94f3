"""How a network is measured: names of methods as plans say them, and what may go together."""

from __future__ import annotations

from dataclasses import dataclass

from laq.core.correction import check_corrections
from laq.core.curve import Curves
from laq.core.errors import DataError, RequestError
from laq.core.formats import PRODUCT, formats_of
from laq.core.groups import group_sizes_of
from laq.core.low_rank import ranks_of
from laq.core.outliers import share_text, shares_of
from laq.core.product import PRODUCT_CODES
from laq.core.scale_units import ScalePer
from laq.core.scheme import StoredAs, allowed_under
from laq.core.stats import Stats
from laq.networks import Batch, Network
from laq.quantizers import quantizer_of
from laq.quantizers.common.encoding import Encoding
from laq.ranges import RANGES
from laq.runtime.result import archive_fixed_bytes
from laq.sensitivity import SENSITIVITIES, Sensitivity, Subject
from laq.sensitivity.common.mixes import calibrated, check_mixes
from laq.transforms import Transformed, transformed


@dataclass(frozen=True, slots=True)
class EncodingNames:
    """How weights will be encoded, as plans say it.

    Parameters
    ----------
    quantizer : str
        Method that picks codes.
    range : str
        Method that chooses scales and zero points of integers.
    stored : StoredAs
        Group sizes and scales.
    """

    quantizer: str
    range: str
    stored: StoredAs

    def encoding(self) -> Encoding:
        """Return the method itself, and the rest."""
        method = quantizer_of(self.quantizer, self.range, self.stored.scale_per)
        return Encoding(method, self.stored.group_sizes[0], self.stored.scale_format)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What an error is said to cost; for the fields see `laq.steps.measure`."""

    sensitivity: str = "fisher"
    mixes: int = 0
    batches: tuple[Batch, ...] = ()
    seed: int = 0
    formats: str = "all"
    low_rank: int | str = 0
    outliers: float | str = 0

    def check(self, group_size: int | str) -> None:
        """Raise RequestError for what cannot go together, DataError without the batches that are needed."""
        check_together(
            formats=self.formats,
            low_rank=self.low_rank,
            outliers=self.outliers,
            group_size=group_size,
            sensitivity=self.sensitivity,
            mixes=self.mixes,
        )
        if needs_held_out(self.sensitivity, self.mixes) and not self.batches:
            raise DataError(
                "mixes, and sensitivities that run the network, need data that the statistics did not see",
                hint="pass them: batches=[...]",
            )


FISHER = Measuring()


def transform_network(
    network: Network, stats: Stats, names: tuple[str, ...], options: EncodingNames
) -> Transformed:
    """Return what is measured and quantized in place of `network`; see `laq.transforms`."""
    return transformed(network, stats, names, options.encoding())


def measure_transformed(
    original: Network,
    made: Transformed,
    names: tuple[str, ...],
    options: EncodingNames,
    measuring: Measuring = FISHER,
) -> Curves:
    """Measure what transforms `names` made of a network; see `laq.steps.measure`."""
    network, stats, stored = made.network, made.stats, options.stored
    group_size, *others = stored.group_sizes
    subject = Subject(
        network,
        stats,
        options.quantizer,
        group_size,
        stored.scale_format,
        measuring.batches,
        measuring.seed,
        options.range,
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
        quantizer=options.quantizer,
        range=options.range,
        fixed_bytes=archive_fixed_bytes(network, ways, measured.column_permutations, stored),
        original_bytes=original.original_bytes,
        n_params=original.n_params,
        source_hash=original.content_hash(),
        data_hash=stats.data_hash,
        transforms=names,
        sensitivity=measuring.sensitivity,
        alternatives=measured.alternatives,
        low_rank=str(measuring.low_rank),
        outliers=share_text(measuring.outliers),
    )
    if not measuring.mixes:
        return curves
    n_mixes, seed = measuring.mixes, measuring.seed
    return calibrated(
        curves, network, stats, measuring.batches, n_mixes=n_mixes, seed=seed, formats=measuring.formats
    )


def check_measure(*, quantizer: str, range: str, sensitivity: str, mixes: int) -> type[Sensitivity]:
    """Return the class of a sensitivity; raise RequestError for options that measuring would refuse."""
    quantizer_of(quantizer, range)
    if mixes:
        check_mixes(mixes)
    return SENSITIVITIES.get(sensitivity)


def check_shared_scales(per: ScalePer, *, range: str, sensitivity: str, mixes: int) -> None:
    """Raise RequestError for what does not look at units that are larger than a group."""
    if per is ScalePer.GROUP:
        return
    ranges = [name for name in RANGES.names() if RANGES.get(name).serves_units]
    sensitivities = [name for name in SENSITIVITIES.names() if not SENSITIVITIES.get(name).runs_network]
    if range not in ranges or sensitivity not in sensitivities or mixes:
        others = f", range {range!r}, sensitivity {sensitivity!r}, {mixes} mixes"
        raise RequestError(
            f"a scale per {per.value} is not for all methods{others}",
            hint=f"good combinations: --scale-per {per.value} --range {' | '.join(ranges)} "
            f"--sensitivity {' | '.join(sensitivities)}, without --mixes; "
            f"--scale-per {ScalePer.GROUP.value} with all others",
        )


def check_together(
    *,
    formats: str,
    low_rank: int | str,
    outliers: float | str,
    group_size: int | str,
    sensitivity: str,
    mixes: int,
) -> None:
    """Raise RequestError for what cannot be measured together, or is no correction or group size."""
    formats_of(formats)
    corrects, chooses = check_corrections(low_rank, outliers), len(group_sizes_of(group_size)) > 1
    if formats == PRODUCT and (corrects or chooses):
        raise RequestError(
            "product codes have neither corrections nor groups",
            hint="leave --low-rank, --outliers and --group-size away, or --format product",
        )
    if (formats == PRODUCT or corrects or chooses) and (mixes or sensitivity != "fisher"):
        raise RequestError(
            "corrections, product codes and several group sizes are measured by fisher, without mixes",
            hint="leave --sensitivity and --mixes away, or --low-rank, --outliers, --group-size auto and "
            "--format product",
        )


def needs_held_out(sensitivity: str, mixes: int) -> bool:
    """Say whether measuring runs the network on data that the statistics must not have seen."""
    return mixes > 0 or SENSITIVITIES.get(sensitivity).runs_network
