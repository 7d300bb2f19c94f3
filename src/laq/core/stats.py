"""What calibration saw: second moments of inputs and of output gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from laq.core.errors import CalibrationError
from laq.core.storage import open_value, refusing, save_value

FloatArray = npt.NDArray[np.float32]


def _mean_of(mine: FloatArray, its: FloatArray, share: float) -> FloatArray:
    """Mean of two means, the first of which counts for `share` of the samples."""
    return (share * mine.astype(np.float64) + (1 - share) * its).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Moments:
    """Means over samples of a random vector v; additive through their sample counts.

    Parameters
    ----------
    second : float32 [n, n] or [n]
        E[v v'] or its diagonal.
    fourth : float32 [n]
        E[v ** 4], which says how far `second` can be trusted.
    n_samples : int
        Samples the means were taken over.
    """

    second: FloatArray
    fourth: FloatArray
    n_samples: int

    @property
    def diagonal(self) -> FloatArray:
        """E[v ** 2]; [n]."""
        return np.ascontiguousarray(np.diagonal(self.second)) if self.second.ndim == 2 else self.second

    @property
    def support(self) -> npt.NDArray[np.float64]:
        """Effective sample size of each element: n E[v^2]^2 / E[v^4], 0 where nothing was seen; [n]."""
        square = self.diagonal.astype(np.float64) ** 2
        fourth = self.fourth.astype(np.float64)
        return self.n_samples * np.divide(square, fourth, out=np.zeros_like(square), where=fourth > 0)

    def divided(self, factors: FloatArray) -> Moments:
        """Return the moments of v / factors; factors are positive, [n].

        Examples
        --------
        >>> halved = Moments(np.float32([4, 4]), np.float32([16, 16]), 100).divided(np.float32([2, 1]))
        >>> halved.second.tolist(), halved.fourth.tolist()
        ([1.0, 4.0], [1.0, 16.0])
        """
        inverse = 1 / factors.astype(np.float64)
        of_pairs = inverse[:, None] * inverse if self.second.ndim == 2 else inverse**2
        return Moments(
            second=(self.second * of_pairs).astype(np.float32),
            fourth=(self.fourth * inverse**4).astype(np.float32),
            n_samples=self.n_samples,
        )

    def merge(self, other: Moments) -> Moments:
        """Return the moments over the samples of both."""
        share = self.n_samples / (self.n_samples + other.n_samples)
        return Moments(
            second=_mean_of(self.second, other.second, share),
            fourth=_mean_of(self.fourth, other.fourth, share),
            n_samples=self.n_samples + other.n_samples,
        )


@dataclass(frozen=True, slots=True)
class Use:
    """One way in which a weight enters the loss: 1/2 sum_i rows_i dW_i columns dW_i'.

    Parameters
    ----------
    columns : str
        Key in `Stats.moments` of the [n_columns, n_columns] moments.
    rows : str
        Key in `Stats.moments` of the [n_rows] moments.
    """

    columns: str
    rows: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Result of calibration.

    Parameters
    ----------
    moments : mapping
        Moments by key; inputs shared by several weights are held once.
    uses : mapping
        Every quantizable weight's uses; a tied embedding has two.
    n_tokens : int
        Calibration tokens seen.
    data_hash : str
        sha256 of the calibration tokens.
    """

    moments: Mapping[str, Moments]
    uses: Mapping[str, tuple[Use, ...]]
    n_tokens: int
    data_hash: str

    def uses_of(self, name: str) -> tuple[Use, ...]:
        """Return the uses of weight `name`.

        Raises
        ------
        CalibrationError
            If calibration saw none.
        """
        if not self.uses.get(name):
            raise CalibrationError(
                f"{name}: calibration saw no use of this weight",
                hint="calibrate this network, with the same --keep",
            )
        return self.uses[name]

    def divided(self, factors: Mapping[str, FloatArray]) -> Stats:
        """Return the statistics of a network whose vectors `key` are v / factors[key].

        Moments are computed when they are asked for: those of a large network stay where they are.
        """
        return replace(self, moments=_DividedMoments(self.moments, factors))

    def merge(self, other: Stats) -> Stats:
        """Return the statistics over the data of both; they must be of the same network.

        Raises
        ------
        CalibrationError
            If the two do not describe the same weights.
        """
        if dict(self.uses) != dict(other.uses):
            raise CalibrationError("statistics of different networks cannot be merged")
        return Stats(
            moments={key: moments.merge(other.moments[key]) for key, moments in self.moments.items()},
            uses=self.uses,
            n_tokens=self.n_tokens + other.n_tokens,
            data_hash=f"{self.data_hash}+{other.data_hash}",
        )

    def save(self, path: Path | str) -> None:
        """Write a folder; see `open`."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for key, moments in self.moments.items():
            arrays[f"second:{key}"], arrays[f"fourth:{key}"] = moments.second, moments.fourth
        header = {
            "n_tokens": self.n_tokens,
            "data_hash": self.data_hash,
            "n_samples": {key: moments.n_samples for key, moments in self.moments.items()},
            "uses": {name: [[use.columns, use.rows] for use in uses] for name, uses in self.uses.items()},
        }
        save_value(Path(path), "stats", header, arrays)

    @staticmethod
    def open(path: Path | str) -> Stats:
        """Read a folder that `save` wrote; moments stay on disk until they are used.

        Raises
        ------
        FormatError
            If the folder is missing, damaged or not statistics.
        """
        header, arrays = open_value(Path(path), "stats")
        with refusing(Path(path), "stats"):
            moments = {
                key: _checked(key, Moments(arrays[f"second:{key}"], arrays[f"fourth:{key}"], int(n)))
                for key, n in header["n_samples"].items()
            }
            uses = {name: tuple(Use(*pair) for pair in pairs) for name, pairs in header["uses"].items()}
            missing = {
                key for pairs in uses.values() for use in pairs for key in (use.columns, use.rows)
            } - set(moments)
            if missing:
                raise ValueError(f"no moments {', '.join(sorted(missing))}")
            return Stats(moments, uses, int(header["n_tokens"]), str(header["data_hash"]))


@final
@dataclass(frozen=True, slots=True, eq=False)
class _DividedMoments(Mapping[str, Moments]):
    """Moments of scaled vectors; nothing is held but the factors."""

    base: Mapping[str, Moments]
    factors: Mapping[str, FloatArray]

    def __getitem__(self, key: str) -> Moments:
        moments = self.base[key]
        return moments.divided(self.factors[key]) if key in self.factors else moments

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def _checked(key: str, moments: Moments) -> Moments:
    n = len(moments.fourth)
    if moments.fourth.shape != (n,) or moments.second.shape not in ((n,), (n, n)):
        raise ValueError(f"{key}: moments of shape {moments.second.shape} and {moments.fourth.shape}")
    return moments
