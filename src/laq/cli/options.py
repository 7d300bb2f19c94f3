"""Options that several commands share, spelled once."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from laq.core.budget import parse_size
from laq.core.errors import BudgetError, DataError, RequestError
from laq.core.formats import FAMILIES, formats_of
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat, stored_as


class GroupSize(Enum):
    """Legal group sizes, as typed."""

    G32 = "32"
    G64 = "64"
    G128 = "128"
    AUTO = "auto"


class Control(Enum):
    """Legal controls."""

    PERMUTED = "permuted"


def _tokens(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise typer.BadParameter(f"{value} is not a number of tokens")
    return value


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face folder, .gguf file, or hub id.")]
Archive = Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `laq quantize` wrote.")]
Bpw = Annotated[float | None, typer.Option("--bpw", help="Average bits per weight, everything counted.")]
Size = Annotated[str | None, typer.Option("--size", help="Size of the whole result, like 60MB or 1.5GiB.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE|DIR|self",
        help="Text file, folder of them, token ids (.npy, .safetensors), or `self` for text sampled from the "
        "model. Left away: built-in English prose.",
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE|DIR|self",
        help="Text file, folder of them, token ids (.npy, .safetensors), or `self` for text sampled from the "
        "original. Left away: the test split of the built-in text.",
    ),
]
Tokens = Annotated[int, typer.Option("--tokens", callback=_tokens, help="Calibration tokens.")]
EffortTokens = Annotated[
    int | None,
    typer.Option("--tokens", callback=_tokens, help="Calibration tokens; as many as --effort says."),
]
EffortName = Annotated[
    str,
    typer.Option(
        "--effort",
        help="default, or max: four times the calibration tokens, then distillation; half an hour for 135M "
        "weights on two cores.",
    ),
]
EvalTokens = Annotated[
    int | None, typer.Option("--tokens", callback=_tokens, help="Use about that many tokens; all by default.")
]
Keep = Annotated[str | None, typer.Option("--keep", metavar="REGEX", help="Weights to leave as they are.")]
QuantizerName = Annotated[str, typer.Option("--quantizer", help="Method, see `laq methods`.")]
RangeName = Annotated[
    str,
    typer.Option("--range", help="How scales and zero points of integers are chosen, see `laq methods`."),
]
TransformNames = Annotated[
    str | None,
    typer.Option(
        "--transform", metavar="NAME[,NAME]", help="Change weights first, not outputs, see `laq methods`."
    ),
]
SensitivityName = Annotated[
    str, typer.Option("--sensitivity", help="What an error costs, see `laq methods`.")
]
Mixes = Annotated[
    int,
    typer.Option(
        "--mixes",
        min=0,
        help="Run so many mixes of formats through the whole network, so that predicted losses are its KL; "
        "32 are a good number.",
    ),
]
Group = Annotated[
    GroupSize | None,
    typer.Option(
        "--group-size",
        help="Columns that share a scale; `auto` chooses for each weight. 64 if not given, 32 with mxfp4.",
    ),
]
Scales = Annotated[
    ScaleFormat | None,
    typer.Option("--scale-format", help="How scales are stored; log4 if not given, e8m0 with mxfp4."),
]
ScalesPer = Annotated[
    ScalePer, typer.Option("--scale-per", help="What a scale serves: beyond groups for integers alone.")
]
AllocatorName = Annotated[
    str, typer.Option("--allocator", help="How bytes are spent over units, see `laq methods`.")
]
FormatNames = Annotated[
    str,
    typer.Option(
        "--format",
        help=f"Number formats that tiles may take: {', '.join(FAMILIES)}; "
        "several with commas, but product, for whole weights, alone.",
    ),
]
LowRank = Annotated[
    str,
    typer.Option(
        "--low-rank",
        metavar="RANK|auto",
        help="Rank of a correction in 8 bits beside each linear's tiles; `auto` chooses for each.",
    ),
]
Outliers = Annotated[
    str,
    typer.Option(
        "--outliers",
        metavar="SHARE|auto",
        help="Share of the weights of each linear that are stored by themselves, such as 0.002; `auto` "
        "chooses for each.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seeds everything that is sampled.")]
ControlName = Annotated[
    Control | None,
    typer.Option("--control", help="Shuffle the measured losses first, to see what the signal is worth."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; implies --quiet.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def check_data(data: str | None) -> None:
    """Raise DataError if a --data that names a file or folder names none."""
    if data is not None and data != "self" and not Path(data).exists():
        raise DataError(
            f"{data}: no such file or folder", hint="give a text file, a folder, .npy, .safetensors, or self"
        )


def check_limits(*, bpw: float | None, size: str | None, max_kl: float | None = None, names: str) -> None:
    """Raise RequestError unless exactly one limit is given, and is a positive number."""
    if sum(limit is not None for limit in (bpw, size, max_kl)) != 1:
        raise RequestError(f"give exactly one of {names}", hint="for example --bpw 4")
    for name, value in (("--bpw", bpw), ("--max-kl", max_kl)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise BudgetError(f"{name} {value} is not a positive number", hint="for example --bpw 4")
    if size is not None:
        parse_size(size)


def check_formats(families: str) -> None:
    """Raise RequestError, with those there are, if a family of formats is unknown."""
    formats_of(families)


def stored_options(
    formats: str, group_size: GroupSize | None, scale_format: ScaleFormat | None, scale_per: ScalePer
) -> dict[str, Any]:
    """Return how tiles are stored as arguments of the API; RequestError for what does not go together."""
    found = stored_as(
        formats,
        group_size=None if group_size is None else group_size.value,
        scale_format=None if scale_format is None else scale_format.value,
        scale_per=scale_per.value,
    )
    return {
        "group_size": found.group_size,
        "scale_format": found.scale_format.value,
        "scale_per": found.scale_per.value,
    }


def check_corrections(*, low_rank: str, outliers: str) -> None:
    """Raise RequestError unless they are a rank and a share, or "auto", that go together."""
    from laq.core.correction import check_corrections as check

    check(low_rank, outliers)


def check_allocator(name: str) -> None:
    """Raise RequestError, with those there are, if there is no such allocator."""
    from laq.allocation import ALLOCATORS

    ALLOCATORS.get(name)
