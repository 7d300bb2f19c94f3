"""How far a distillation has come: saved now and then, so that an interrupted one goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.errors import FormatError
from laq.core.storage import open_value, refusing, save_value

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class State:
    """What a distillation is at after some steps.

    Parameters
    ----------
    step : int
        Steps done.
    key : str
        sha256 of what it is a distillation of: the networks, the data and the settings.
    values, means, squares : mapping of str to float32 array
        By parameter: distance to where it began, and Adam's means of its gradient and of its square.
    """

    step: int
    key: str
    values: Mapping[str, FloatArray]
    means: Mapping[str, FloatArray]
    squares: Mapping[str, FloatArray]

    def save(self, path: Path | str) -> None:
        """Write a folder; what was there is replaced when the new one is complete."""
        parts = {"values": self.values, "means": self.means, "squares": self.squares}
        arrays: dict[str, npt.NDArray[Any]] = {
            f"{part}:{name}": array for part, named in parts.items() for name, array in named.items()
        }
        header = {"step": self.step, "key": self.key, "names": list(self.values)}
        save_value(Path(path), "distillation", header, arrays)

    @staticmethod
    def open(path: Path | str) -> State:
        """Read a folder that `save` wrote.

        Raises
        ------
        FormatError
            If the folder is missing, damaged or not a distillation.
        """
        header, arrays = open_value(Path(path), "distillation")
        with refusing(Path(path), "distillation"):
            parts = [
                {name: np.array(arrays[f"{part}:{name}"], np.float32) for name in header["names"]}
                for part in ("values", "means", "squares")
            ]
            step, key = header["step"], header["key"]
            if type(step) is not int or step < 0 or not isinstance(key, str):
                raise ValueError(f"step {step!r}")
            if not all(np.isfinite(array).all() for part in parts for array in part.values()):
                raise FormatError(f"{path}: values are not finite", hint="delete it and begin again")
            return State(step, key, *parts)
