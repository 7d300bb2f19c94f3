"""What an evaluation measured, with units."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laq.core.storage import refusing, write_text_atomic


def nats_text(nats: float) -> str:
    """Return a KL for people: four decimals, or two digits where those would be zeros.

    Examples
    --------
    >>> nats_text(0.05371), nats_text(0.0000508), nats_text(0.0)
    ('0.0537', '5.1e-05', '0')
    """
    return f"{nats:.4f}" if nats >= 0.001 else f"{nats:.2g}"


@dataclass(frozen=True, slots=True)
class Record:
    """Distance of a quantized network to its original on held-out data.

    Parameters
    ----------
    kl_nats : float
        Mean KL(original || quantized), nats per token.
    kl_stderr_nats : float
        Standard error of that mean, over sequences; None for a single one.
    perplexity_original, perplexity : float
        exp of the mean negative log-likelihood of the data; None without labels.
    top1_agreement : float
        Share of tokens whose most likely class is the same.
    n_tokens : int
        Tokens that were predicted.
    size_bytes : int
        Bytes of the quantized network, everything counted.
    original_bytes : int
        Bytes of the original's tensors.
    bpw : float
        Average bits per weight.
    split : str
        Which data: "selection", "test", or a file.
    data_hash : str
        sha256 of the tokens.
    """

    kl_nats: float
    kl_stderr_nats: float | None
    perplexity_original: float | None
    perplexity: float | None
    top1_agreement: float
    n_tokens: int
    size_bytes: int
    original_bytes: int
    bpw: float
    split: str
    data_hash: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)

    def save(self, path: Path | str) -> None:
        """Write a JSON file; see `open`."""
        write_text_atomic(Path(path), json.dumps({"kind": "record", **self.to_json()}, indent=1) + "\n")

    @staticmethod
    def open(path: Path | str) -> Record:
        """Read a file that `save` wrote.

        Raises
        ------
        FormatError
            If the file is missing, damaged or not a record.
        """
        with refusing(Path(path), "record"):
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("kind") != "record":
                raise ValueError("another kind of file")
            return Record(**content)
