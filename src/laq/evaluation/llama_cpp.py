"""llama.cpp through llama-cpp-python, to be held against: a GGUF that writes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from laq.core.errors import FormatError, RequestError
from laq.evaluation.speed import Writer

INSTALL = "pip install llama-cpp-python"


def gguf_writer(path: Path, *, n_prompt: int, n_new: int, threads: int) -> Writer:
    """Return a GGUF that continues a random prompt with its likeliest tokens.

    Parameters
    ----------
    path : Path
        Of the file.
    n_prompt, n_new : int
        Tokens to read and to write.
    threads : int
        That share one step.

    Raises
    ------
    RequestError
        If llama-cpp-python is not installed, or there is no such file.
    FormatError
        If llama.cpp cannot open the file.
    """
    if not path.is_file():
        raise RequestError(f"{path}: no such file", hint="give a .gguf file")
    try:
        import llama_cpp
    except ImportError as error:
        raise RequestError(f"{path}: llama-cpp-python is not installed", hint=INSTALL) from error
    logging.getLogger("llama-cpp-python").setLevel(
        logging.CRITICAL
    )  # else it prints all it knows of the file
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise FormatError(f"{path}: llama.cpp cannot open it", hint="give a .gguf file that it knows")
    sizes = llama_cpp.llama_context_default_params()
    sizes.n_ctx, sizes.n_batch = n_prompt + n_new, n_prompt
    sizes.n_threads = sizes.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, sizes)
    if not context:
        raise RequestError(f"{path}: llama.cpp has no room for {n_prompt + n_new} tokens")
    n_vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    prompt = np.random.default_rng(0).integers(0, n_vocabulary, n_prompt).tolist()

    def write() -> Iterator[int]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), 0)
        tokens = prompt
        for _ in range(n_new):
            array = (llama_cpp.llama_token * len(tokens))(*tokens)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
                raise RequestError(f"{path}: llama.cpp cannot run it")
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            tokens = [int(np.ctypeslib.as_array(logits, (n_vocabulary,)).argmax())]
            yield tokens[0]

    return Writer(f"llama.cpp {path.stem}", int(llama_cpp.llama_model_size(model)), write)
