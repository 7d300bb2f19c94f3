"""How long a network is worked on: tokens of calibration, and steps of distillation afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from laq.core.errors import RequestError

CALIBRATION_TOKENS = 32768
MAX_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Effort:
    """What is spent where nothing else is asked for.

    Parameters
    ----------
    n_tokens : int
        Calibration tokens.
    n_steps : int
        Steps of distillation, see `laq.distillation`.
    """

    n_tokens: int
    n_steps: int


EFFORTS = {"default": Effort(CALIBRATION_TOKENS, 0), "max": Effort(4 * CALIBRATION_TOKENS, 192)}


def effort_of(name: str, *, tokens: int | None = None, distill: int | None = None) -> Effort:
    """Return the effort called `name`, with other numbers where they are given.

    Raises
    ------
    RequestError
        If there is no such effort, or a number is out of range.

    Examples
    --------
    >>> effort_of("max", tokens=1024)
    Effort(n_tokens=1024, n_steps=192)
    """
    if name not in EFFORTS:
        raise RequestError(f"unknown effort {name!r}", hint=f"choose one of: {', '.join(EFFORTS)}")
    for label, value, least, most in (("tokens", tokens, 1, None), ("distill", distill, 0, MAX_STEPS)):
        if value is None:
            continue
        if type(value) is not int or value < least or (most is not None and value > most):
            to = "" if most is None else f" to {most}"
            raise RequestError(f"{label}={value!r}", hint=f"choose a whole number from {least}{to}")
    effort = EFFORTS[name]
    return Effort(
        effort.n_tokens if tokens is None else tokens, effort.n_steps if distill is None else distill
    )
