"""Corrections: what is added to the tiles of a weight, in bytes of its own; of low rank or of outliers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.errors import RequestError
from laq.core.low_rank import LowRank, low_rank_sections, ranks_of
from laq.core.outliers import Outliers, outlier_sections, shares_of

Correction = LowRank | Outliers
"""What is stored beside the tiles of a linear; in the source's order, so that nothing needs a permutation."""


class Kind(Enum):
    """Kinds of corrections, as files call them."""

    RANK = "rank"
    OUTLIERS = "outliers"


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of a correction a weight has.

    Parameters
    ----------
    kind : Kind
        What it is made of.
    n : int
        Products, or single weights; at least one.

    Examples
    --------
    >>> Amount(Kind.RANK, 2).to_json(), Amount(Kind.OUTLIERS, 40).name
    ({'rank': 2}, 'outliers 40')
    """

    kind: Kind
    n: int

    @property
    def name(self) -> str:
        """Kind and number."""
        return f"{self.kind.value} {self.n}"

    def sections(self, n_rows: int, n_columns: int) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
        """Return name, type and shape of what is stored."""
        of_kind = low_rank_sections if self.kind is Kind.RANK else outlier_sections
        return of_kind(n_rows, n_columns, self.n)

    def read(self, sections: Mapping[str, npt.NDArray[Any]]) -> Correction:
        """Return what sections of these names and types hold; `problems` says whether it is sound."""
        if self.kind is Kind.RANK:
            return LowRank(sections["low_rank"], sections["low_rank_scales"])
        return Outliers(self.n, sections["outliers"])

    def to_json(self) -> dict[str, int]:
        """Return what plans and archives say."""
        return {self.kind.value: self.n}


def amount_from_json(fields: Mapping[str, Any], shape: tuple[int, int]) -> Amount | None:
    """Return what is said of a weight's correction; raises ValueError if there can be no such.

    Examples
    --------
    >>> amount_from_json({"name": "w"}, (10, 10)) is None
    True
    """
    found = [kind for kind in Kind if kind.value in fields]
    if len(found) > 1:
        raise ValueError("two corrections")
    if not found:
        return None
    n: object = fields[found[0].value]
    most = min(shape) if found[0] is Kind.RANK else shape[0] * shape[1]
    if type(n) is not int or not 0 < n <= most:
        raise ValueError(f"{found[0].value} {n!r} of shape {shape}")
    return Amount(found[0], n)


def check_corrections(low_rank: int | str, outliers: float | str) -> bool:
    """Say whether any correction is asked for; raise RequestError for what there is not.

    Raises
    ------
    RequestError
        If either is neither a number nor "auto", or a weight would need both.
    """
    ranks, shares = ranks_of(low_rank), shares_of(outliers)
    if any(ranks) and any(shares) and not (0 in ranks and 0 in shares):
        raise RequestError(
            f"a correction of rank {low_rank} and outliers {outliers} beside the same tiles",
            hint="choose one of them, or auto for both: each weight then has one or the other",
        )
    return any(ranks) or any(shares)


def amounts_for(
    ranks: Iterable[int], shares: Iterable[float], *, kind: str, shape: tuple[int, int]
) -> tuple[Amount | None, ...]:
    """Return the corrections that a weight is measured with; linears alone have some.

    Parameters
    ----------
    ranks : iterable of int
        Each for weights of four times as many rows and columns.
    shares : iterable of float
        Of the weight's elements.
    kind, shape
        Of the weight.

    Returns
    -------
    tuple of Amount or None
        Without a correction first, if that is among ranks and shares.

    Examples
    --------
    >>> [amount and amount.name for amount in amounts_for((0, 1), (0, 0.01), kind="linear", shape=(50, 20))]
    [None, 'rank 1', 'outliers 10']
    >>> amounts_for((8,), (0,), kind="linear", shape=(50, 20))
    (None,)
    """
    ranks, shares = tuple(ranks), tuple(shares)
    n_elements = shape[0] * shape[1]
    found: list[Amount | None] = [None] if 0 in ranks and 0 in shares else []
    if kind == "linear":
        found += [Amount(Kind.RANK, rank) for rank in ranks if rank and 4 * rank <= min(shape)]
        counts = dict.fromkeys(round(share * n_elements) for share in shares)
        found += [Amount(Kind.OUTLIERS, n) for n in counts if n]
    return tuple(found) or (None,)
