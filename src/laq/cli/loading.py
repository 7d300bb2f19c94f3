"""Networks opened for a command."""

from __future__ import annotations

from laq.networks.module import Network
from laq.quantizers import QUANTIZERS
from laq.steps import open_network


def opened_network(model: str, *, keep: str | None = None, quantizer: str = "gptq") -> Network:
    """Load a network, after names that would fail later were looked up.

    Parameters
    ----------
    model : str
        Folder, file or hub id.
    keep : str, optional
        Regular expression of weights to leave alone.
    quantizer : str
        Must exist.

    Raises
    ------
    RequestError
        If there is no such quantizer or network.
    """
    QUANTIZERS.get(quantizer)
    return open_network(model, keep=keep)
