"""Networks opened under a line of progress."""

from __future__ import annotations

from laq.core.progress import track
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
    (network,) = [open_network(one, keep=keep) for one in track([model], label="loading", total=1)]
    return network
