"""What a long run keeps as it goes on, so that the same call continues from there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from laq.core.curve import Curves
from laq.core.errors import RequestError
from laq.core.stats import Stats
from laq.core.storage import HEADER_NAME, VALUE_FOLDER, Json, check_replaceable, open_value, save_value

PARTS = ("request", "stats", "curves", "distillation")
HINT = "delete it, or choose another folder"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with what a run has finished.

    Parameters
    ----------
    folder : Path
        Free, or one that was begun before.
    """

    folder: Path

    def begin(self, request: Json) -> None:
        """Write down what is asked for, or refuse to go on with something else.

        Parameters
        ----------
        request : dict
            Everything that the parts depend on; numbers, texts and lists of them.

        Raises
        ------
        RequestError
            If the folder was begun with another request; names what differs.
        """
        path = self.folder / "request"
        if not (path / HEADER_NAME).is_file():
            save_value(path, "request", request, {})
            return
        found, _ = open_value(path, "request")
        different = sorted(key for key in {*found, *request} if found.get(key) != request.get(key))
        if different:
            raise RequestError(f"{self.folder}: was begun with other {', '.join(different)}", hint=HINT)

    def stats(self) -> Stats | None:
        """Return the statistics, None if calibration has not ended."""
        return Stats.open(self.folder / "stats") if self._has("stats") else None

    def curves(self) -> Curves | None:
        """Return the curves, None if measuring has not ended."""
        return Curves.open(self.folder / "curves") if self._has("curves") else None

    @property
    def distillation(self) -> Path:
        """Folder of the state of the distillation."""
        return self.folder / "distillation"

    def _has(self, part: str) -> bool:
        return (self.folder / part / HEADER_NAME).is_file()


def checkpoint_at(folder: Path | str) -> Checkpoint:
    """Return a checkpoint, or raise RequestError if something else lies where its parts are kept."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder}: is a file, not a checkpoint", hint="choose another folder")
    for part in PARTS:
        check_replaceable(folder / part, VALUE_FOLDER)
    return Checkpoint(folder)
