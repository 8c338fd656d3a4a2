"""Batch inference: every prompt is answered once, also where the run is killed meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easyllm import files
from easyllm.data.sources.io import is_url
from easyllm.errors import UserError
from easyllm.inference.batch.readers import Prompt, read_prompts
from easyllm.inference.batch.results import Journal, finished
from easyllm.inference.detokenizer import answer
from easyllm.inference.engine_protocol import Engine
from easyllm.inference.prompts import encode_messages, encode_text, model_files, model_folder
from easyllm.inference.token_texts import TokenText
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.spec.inference import SamplingSpec
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write

SHOWN = 3
"""Answers shown in the stage's metrics."""
SHOWN_CHARACTERS = 160


def infer(run: RunSpec) -> dict[str, Any]:
    """Answer every prompt of the run and write ``RunPaths.results``.

    A result holds ``id``, ``prompt``, ``text``, ``finish_reason``, ``prompt_tokens`` and
    ``completion_tokens``; with ``sampling.n`` its ``index``, with ``sampling.logprobs`` the
    tokens' ``logprobs``, whose texts, and bytes, are the answer's. Where a prompt failed,
    ``error`` says why and the text is null. Prompts that a killed run has answered are not
    answered again, nor are those of results that are whole and made from the same. A record's
    own sampling fields override ``inference.sampling``.
    """
    count = sum(1 for _ in read_prompts(run))
    if not count:
        raise UserError(f"inference.prompts={run.inference.prompts}: holds no prompt; write one")
    output, made_from = RunPaths(run).results, _identity(run)
    if there := finished(output, made_from):
        return {**there, "resumed": count, "generated_tokens": 0, "tokens_per_second": 0.0}
    journal = Journal(output, made_from)
    try:
        resumed = len(journal)
        tokens, seconds = 0, 0.0
        if resumed < count:
            engine = run.inference.engine.load(model_folder(run), run)
            started = time.monotonic()
            try:
                tokens = asyncio.run(_answer_all(run, engine, journal, count))
            except ExceptionGroup as group:  # of several workers; the first error is raised
                raise group.exceptions[0] from group
            finally:
                engine.close()
            seconds = time.monotonic() - started
        failed = 0
        samples: list[dict[str, str]] = []
        for result in journal.results():
            failed += "error" in result
            if len(samples) < SHOWN and "error" not in result:
                shown = {"prompt": _words(result["prompt"]), "text": result["text"]}
                samples.append({key: _shortened(text) for key, text in shown.items()})
        made = {"prompts": count, "failed": failed, "samples": samples}
        journal.finish(made)
    finally:
        journal.close()
    return {
        **made,
        "resumed": resumed,
        "generated_tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }


async def _answer_all(run: RunSpec, engine: Engine, journal: Journal, count: int) -> int:
    """Answer the prompts that the journal lacks; returns the number of tokens."""
    rest = ((at, prompt) for at, prompt in enumerate(read_prompts(run)) if at not in journal)
    tokens = 0
    with progress("infer", count, "prompt") as bar:
        bar.update(len(journal))

        async def work(prompts: Iterator[tuple[int, Prompt]]) -> None:
            nonlocal tokens
            for at, prompt in prompts:
                results = await _results(run, engine, at, prompt)
                journal.add(at, results)
                tokens += sum(result["completion_tokens"] for result in results)
                bar.update(1)

        async with asyncio.TaskGroup() as group:
            # more than the engine takes at a time, so that it never waits for this loop
            for _ in range(2 * run.inference.batch_size):
                group.create_task(work(rest))
    return tokens


async def _results(run: RunSpec, engine: Engine, at: int, prompt: Prompt) -> list[dict[str, Any]]:
    """The results of prompt number ``at``, one for each of its ``sampling.n``."""
    sampling = prompt.sampling
    begun: dict[str, Any] = {"id": prompt.id, "prompt": prompt.content}
    try:
        if prompt.error is not None:
            raise UserError(prompt.error)
        ids = _encode(run, engine.tokenizer, prompt)
        answers = [
            _complete(
                engine, ids, dataclasses.replace(sampling, seed=_seed(run, sampling, at, index))
            )
            for index in range(sampling.n)
        ]
        made = await asyncio.gather(*answers)
    except UserError as error:
        nothing = {"text": None, "finish_reason": None, "prompt_tokens": 0, "completion_tokens": 0}
        return [{**begun, **nothing, "error": str(error)}]
    indexed = [{"index": index} if sampling.n > 1 else {} for index in range(sampling.n)]
    return [{**begun, **number, **one} for number, one in zip(indexed, made, strict=True)]


async def _complete(engine: Engine, prompt: list[int], sampling: SamplingSpec) -> dict[str, Any]:
    text, tokens, reason = "", 0, None
    logprobs: list[TokenText] = []
    async for piece in answer(engine, prompt, sampling):
        text += piece.text
        tokens += len(piece.tokens)
        logprobs += piece.logprobs
        reason = piece.finish_reason
    fields = {}
    if sampling.logprobs is not None:
        fields["logprobs"] = [
            {
                "token": one.text,
                "bytes": list(one.bytes or b""),
                "logprob": one.logprob,
                "top": [[other.text, other.logprob] for other in one.top],
            }
            for one in logprobs
        ]
    return {
        "text": text,
        "finish_reason": reason,
        "prompt_tokens": len(prompt),
        "completion_tokens": tokens,
        **fields,
    }


def _encode(run: RunSpec, tokenizer: Any, prompt: Prompt) -> list[int]:
    if isinstance(prompt.content, list):
        return encode_messages(run, tokenizer, prompt.content)
    if run.inference.chat:
        turn = {"role": "user", "content": prompt.content}
        return run.data.template.prompt(tokenizer, [turn])
    return encode_text(tokenizer, prompt.content)


def _seed(run: RunSpec, sampling: SamplingSpec, at: int, index: int) -> int:
    """A separate seed for each answer, so that no order of the work can change it."""
    seed = run.seed if sampling.seed is None else sampling.seed
    return int(files.stable_hash([seed, at, index], 12), 16)


def _identity(run: RunSpec) -> str:
    """A hash of all that decides the results."""
    inference = write(run.inference)
    for key in ("output", "batch_size"):
        del inference[key]
    model = {str(file): files.fingerprint(file) for file in model_files(run)}
    prompts = run.inference.prompts
    file = None
    if isinstance(prompts, str):
        file = files.fingerprint(prompts if is_url(prompts) else Path(prompts))
    plain = [inference, model, file, write(run.model), write(run.data.template), run.seed]
    return files.stable_hash([*plain, run.hardware.device])


def _words(asked: str | list[dict[str, Any]]) -> str:
    return asked if isinstance(asked, str) else str(asked[-1]["content"])


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"
