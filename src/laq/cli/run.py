"""laq run: let an archive write."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from laq.cli.options import Archive, AsJson, Debug, Quiet, Seed
from laq.cli.output import running

Prompt = Annotated[str, typer.Option("--prompt", "-p", help="Text to continue.")]
Chat = Annotated[bool, typer.Option("--chat", help="Give the prompt as the user's turn of a chat.")]
NewTokens = Annotated[int, typer.Option("--tokens", min=1, help="Stop after so many tokens.")]
Temperature = Annotated[
    float,
    typer.Option("--temperature", min=0.0, help="0 takes the likeliest token; above, tokens are drawn."),
]


def run(
    out_folder: Archive,
    prompt: Prompt,
    chat: Chat = False,
    tokens: NewTokens = 128,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Let an archive write, a token at a time.

    The text goes to stdout as it comes; how fast it came, to stderr.
    """
    with running(debug=debug, as_json=as_json, quiet=quiet) as out:
        from laq.core.errors import RequestError

        if not prompt.strip():
            raise RequestError("the prompt is empty", hint='for example --prompt "The sky is"')
        from laq.cli.loading import archive_tokenizer
        from laq.evaluation.speed import Stopwatch
        from laq.runtime.decoding import Decoder
        from laq.runtime.generate import end_tokens, generate, pieces, positions, prompt_ids
        from laq.runtime.load import load

        tokenizer = archive_tokenizer(out_folder)
        ids = prompt_ids(tokenizer, prompt, chat=chat)
        module = load(out_folder)
        ends = end_tokens(module, tokenizer)
        room, n_prompt = positions(module), ids.shape[1]
        if room is not None:
            if n_prompt >= room:
                raise RequestError(
                    f"{n_prompt} tokens of prompt: the network has room for {room}, with what it writes",
                    hint="shorten the prompt",
                )
            tokens = min(tokens, room - n_prompt)
        decoder = Decoder(module, max_tokens=n_prompt + tokens)
        stream = generate(decoder, ids, max_new_tokens=tokens, ends=ends, temperature=temperature, seed=seed)
        watch, written = Stopwatch(), []
        for piece in pieces(tokenizer, watch.each(stream)):
            written.append(piece)
            if not as_json:
                out.stream.write(piece)
                out.stream.flush()
        content = {
            "text": "".join(written),
            "n_prompt_tokens": n_prompt,
            **_speed(n_prompt, watch.laps_s),
            "repeated_natively": decoder.is_native,
            "not_repeated_because": decoder.reason,
        }
        if not as_json and not quiet:
            print("\n" + _speed_text(content), file=sys.stderr)
        out.show(content, "")


def _speed(n_prompt: int, laps_s: Sequence[float]) -> dict[str, float | int | None]:
    """Tokens per second of reading the prompt, with the first token, and of writing the others."""
    others = laps_s[1:]
    return {
        "n_new_tokens": len(laps_s),
        "prompt_tokens_per_s": n_prompt / laps_s[0] if laps_s else None,
        "new_tokens_per_s": len(others) / sum(others) if others else None,
    }


def _speed_text(content: Mapping[str, object]) -> str:
    parts = [f"{content['n_prompt_tokens']} tokens read", f"{content['n_new_tokens']} written"]
    for index, key in enumerate(("prompt_tokens_per_s", "new_tokens_per_s")):
        speed = content[key]
        if isinstance(speed, float):
            parts[index] += f" at {speed:.0f} tokens/s"
    if content["not_repeated_because"]:
        parts.append(f"by torch ({content['not_repeated_because']})")
    return ", ".join(parts)
