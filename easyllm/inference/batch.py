"""Batch inference: prompts in, JSON Lines out."""

from __future__ import annotations

import json
import time
from typing import Any

from easyllm import files
from easyllm.inference.prompts import Prompt, decode, encode_text, load_prompts, model_folder
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec

SHOWN = 3
"""Completions shown in the stage's metrics."""
SHOWN_CHARACTERS = 160


def infer(run: RunSpec) -> dict[str, Any]:
    """Complete every prompt of the run and write ``RunPaths.results``.

    A line holds ``prompt``, ``text``, ``tokens`` (how many were generated),
    ``finish_reason`` and, for prompts given by name, ``name``.
    """
    prompts = load_prompts(run)
    generator = run.inference.engine.load(model_folder(run), run)
    encoded = [_encode(run, generator.tokenizer, prompt) for prompt in prompts]
    sampling = run.inference.sampling
    started = time.monotonic()
    with progress("infer", len(prompts) * sampling.max_tokens, "tok") as bar:
        completions = generator.generate(encoded, sampling, advance=bar.update)
        bar.total = bar.n  # most prompts end before the tokens they may take
    seconds = time.monotonic() - started
    tokens = sum(len(completion.tokens) for completion in completions)
    results = [
        {
            **({"name": prompt.name} if prompt.name is not None else {}),
            "prompt": prompt.text,
            "text": decode(generator.tokenizer, completion.tokens),
            "tokens": len(completion.tokens),
            "finish_reason": completion.finish_reason,
        }
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    with files.new_file(RunPaths(run).results) as aside, aside.open("w", encoding="utf-8") as out:
        for result in results:
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
    return {
        "prompts": len(prompts),
        "generated_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "samples": [
            {"prompt": _shortened(result["prompt"]), "text": _shortened(result["text"])}
            for result in results[:SHOWN]
        ],
    }


def _encode(run: RunSpec, tokenizer: Any, prompt: Prompt) -> list[int]:
    if run.inference.chat:
        turn = {"role": "user", "content": prompt.text}
        return run.data.template.prompt(tokenizer, [turn])
    return encode_text(tokenizer, prompt.text)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"
