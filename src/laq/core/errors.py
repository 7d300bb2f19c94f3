"""Every error a user can meet.

LaqError
├── RequestError        the request is wrong (exit 2)
│   ├── FormatError     a file is malformed, truncated or of an unknown version
│   ├── NetworkError    the network cannot be loaded or has nothing to quantize
│   ├── BudgetError     the budget cannot be met; says the possible range
│   ├── DataError       the text or tokens are too short or unreadable
│   └── ResourceError   not enough memory or disk; says how much
└── RunError            the run failed although the request was right (exit 1)
    └── CalibrationError  statistics are not usable
"""

from __future__ import annotations


class LaqError(Exception):
    """Base of all errors raised for a user to read.

    Parameters
    ----------
    message : str
        The offending thing, what was expected and what was found.
    hint : str
        The way out, in the imperative; empty if there is none.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class RequestError(LaqError):
    """The request is wrong and can be mended by the person who made it."""

    exit_code = 2


class FormatError(RequestError):
    """A file is malformed, truncated or of an unknown version."""


class NetworkError(RequestError):
    """The network cannot be loaded, or holds nothing that can be quantized."""


class BudgetError(RequestError):
    """The budget lies outside of what is possible."""


class DataError(RequestError):
    """Text or tokens are missing, unreadable or too short."""


class ResourceError(RequestError):
    """Memory or disk will not suffice."""


class RunError(LaqError):
    """The run failed although the request was right."""


class CalibrationError(RunError):
    """The statistics cannot be used: not finite, or not positive definite."""
