"""How the tables of the trellis formats were made: python bench/trellis_tables.py

Generalized Lloyd iterations over Gaussian samples: encode with the table at hand, then let each entry become
the mean of what it stands for. Prints the tables as hexadecimal digits, their error, and the terms from which
the search predicts the error of a group at any scale (`laq.core.formats.trellis`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WINDOW_BITS, ROWS, COLUMNS, CHAINS = 8, 16, 64, 4
N_ENTRIES = 1 << WINDOW_BITS
ITERATIONS, SEEDS, N_TILES = 60, 3, 96
Floats = npt.NDArray[np.float32]


def encode(chains: Floats, bits: int, table: Floats) -> npt.NDArray[np.int64]:
    """Return the window of every value [n, length]: 16 values at a time, with the next 16 in view."""
    n, length = chains.shape
    n_states = N_ENTRIES >> bits
    windows = np.empty((n, length), np.int64)
    state = np.zeros(n, np.int64)
    for start in range(0, length, ROWS):
        stop = min(start + 2 * ROWS, length)
        best = np.full((n, n_states), 1e20, np.float32)
        best[np.arange(n), state] = 0
        oldest = []
        for t in range(start, stop):
            distance = chains[:, t, None] - table
            cost = (np.repeat(best, 1 << bits, 1) + distance * distance).reshape(n, 1 << bits, n_states)
            oldest.append(cost.argmin(1))
            best = cost.min(1)
        last = best.argmin(1)
        for t in range(stop - 1, start - 1, -1):
            window = last | oldest[t - start][np.arange(n), last] << (WINDOW_BITS - bits)
            if t < start + ROWS:
                windows[:, t] = window
                if t == start + ROWS - 1:
                    state = last
            last = window >> bits
    return windows


def tiles(generator: np.random.Generator, n: int) -> Floats:
    """Normal values in units that were rounded to an eighth of an octave; [n, rows, columns]."""
    values = generator.normal(size=(n, ROWS, COLUMNS))
    return (values * 2 ** ((generator.random((n, ROWS, 1)) - 0.5) / 8)).astype(np.float32)


def as_chains(values: Floats) -> Floats:
    """[n, 16, columns] to [n * 4, 4 columns]: 16 rows of every fourth column, one column after the other."""
    split = values.reshape(len(values), ROWS, -1, CHAINS)
    return np.ascontiguousarray(split.transpose(0, 3, 2, 1)).reshape(len(values) * CHAINS, -1)


def error(values: Floats, bits: int, table: Floats) -> float:
    """Mean squared error over values of variance one."""
    chains = as_chains(values)
    return float(np.square(chains - table[encode(chains, bits, table)]).mean())


def train(bits: int, seed: int) -> Floats:
    """Return a table for values of variance one; float32 [256]."""
    generator = np.random.default_rng(seed)
    table = generator.normal(size=N_ENTRIES).astype(np.float32)
    for iteration in range(ITERATIONS):
        chains = as_chains(tiles(generator, N_TILES * (4 if iteration >= ITERATIONS - 8 else 1)))
        windows = encode(chains, bits, table).ravel()
        counts = np.bincount(windows, minlength=N_ENTRIES)
        sums = np.bincount(windows, chains.ravel(), minlength=N_ENTRIES)
        fresh = generator.normal(size=N_ENTRIES)
        table = np.where(counts > 0, sums / np.maximum(counts, 1), fresh).astype(np.float32)
    return table


def whole(table: Floats) -> tuple[npt.NDArray[np.int8], float]:
    """Return entries as integers of 8 bits, and how many make one standard deviation."""
    unit = 127 / float(np.abs(table).max())
    return np.rint(table * unit).astype(np.int8), unit


def error_terms(bits: int, entries: npt.NDArray[np.int8], unit: float) -> list[float]:
    """Fit the squared error of a value u, in standard deviations: a + c u^4 + d u^6.

    Rows share a path through the table, so that one of too small a scale costs its neighbours: all rows of a
    tile are taken too large or too small alike.
    """
    generator = np.random.default_rng(7)
    values = generator.normal(size=(900, ROWS, COLUMNS))
    heavy = generator.standard_t(8, size=values.shape) * np.sqrt(6 / 8)
    values = np.where(generator.random((len(values), 1, 1)) < 0.5, heavy, values)
    rms = np.sqrt(np.square(values).mean(2, keepdims=True))
    scales = rms / unit * 2 ** (generator.integers(-4, 5, size=(len(values), 1, 1)) / 8)
    scaled = (values / scales).astype(np.float32)
    chains = as_chains(scaled)
    table = entries.astype(np.float32)
    errors = np.square((chains - table[encode(chains, bits, table)]) / unit)
    measured = errors.reshape(len(values), CHAINS, COLUMNS // CHAINS, ROWS).sum((1, 2)).ravel()
    u = scaled.astype(np.float64) / unit
    terms = np.stack([np.full(rms.shape[:2], float(COLUMNS)), (u**4).sum(2), (u**6).sum(2)], -1).reshape(
        -1, 3
    )
    used = np.ones(3, bool)
    while True:
        fitted, weights = np.zeros(3), 1 / terms[:, 0]
        for _ in range(12):
            scaled_terms = terms[:, used] * weights[:, None]
            fitted[used] = np.linalg.lstsq(scaled_terms, measured * weights, rcond=None)[0]
            weights = 1 / np.maximum(terms @ fitted, 1e-5 * terms[:, 0])
        if (fitted >= 0).all():  # as an error is
            return [float(f"{value:.4g}") for value in fitted]
        used &= fitted >= 0


def main() -> None:
    """Train and print."""
    test = tiles(np.random.default_rng(99), 400)
    for bits in range(1, 7):
        table = min((train(bits, seed) for seed in range(SEEDS)), key=lambda t: error(test, bits, t))
        entries, unit = whole(table)
        rounded = error(test, bits, entries.astype(np.float32) / np.float32(unit))
        digits = (entries.astype(np.int16) + 128).astype(np.uint8).tobytes().hex()
        print(f"{bits} bits: error {error(test, bits, table):.5f}, in 8 bits {rounded:.5f}, unit {unit:.3f}")
        print(f"  terms {error_terms(bits, entries, unit)}")
        print(f"  {digits}", flush=True)


if __name__ == "__main__":
    main()
