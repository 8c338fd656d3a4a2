"""What engines and servers make of a model, compared with transformers alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from easyllm.evaluation.verify import comparisons
from easyllm.evaluation.verify.comparisons import Comparison
from easyllm.evaluation.verify.server import Server
from easyllm.evaluation.verify.subject import Subject, conversation
from easyllm.inference.engine_protocol import Engine
from easyllm.inference.prompts import encode_messages
from easyllm.spec.inference import SamplingSpec

TOKENIZER = "the engine loads other tokenizer files, or by other rules"
PROMPT = "the answers of a conversation are asked for otherwise than they were trained"
NUMBERS = (
    "it computes with other weights, another dtype, other positions, or runs another model's code"
)
ANSWERS = "where the numbers agree, its cache of keys and values, or its sampling, is wrong"


def by_engine(subject: Subject) -> Iterator[Comparison]:
    """Loads ``inference.engine`` and compares it."""
    run = subject.run
    name = type(run.inference.engine).__name__
    engine = run.inference.engine.load(subject.folder, run)
    try:
        numbers, answers = asyncio.run(_computed(engine, subject))
        yield from _engine_tokens(engine, name, subject)
    finally:
        engine.close()
    yield comparisons.logprobs(
        "engine's numbers", f"transformers ~ the engine {name}", subject.expected, numbers,
        subject.names, subject.dtype, f"{name}: {NUMBERS}",
    )  # fmt: skip
    yield comparisons.answers(
        "engine's answers", f"transformers ~ the engine {name}, greedy",
        subject.plain["answers"], answers, subject.names, subject.dtype, f"{name}: {ANSWERS}",
        subject.tokenizer.decode,
    )  # fmt: skip


async def _computed(engine: Engine, subject: Subject) -> tuple[list[list[float]], list[list[int]]]:
    sampling = SamplingSpec(max_tokens=subject.run.verify.new_tokens, ignore_eos=True)
    numbers, answers = [], []
    for document, asked in zip(subject.documents, subject.asked, strict=True):
        scores = await engine.score(document.ids, 0)
        numbers.append([score.logprob for score in scores])
        tokens: list[int] = []
        async for step in engine.generate(asked.ids, sampling):
            tokens += step.tokens
        answers.append(tokens)
    return numbers, answers


def _engine_tokens(engine: Engine, name: str, subject: Subject) -> Iterator[Comparison]:
    texts = subject.samples.texts
    expected = dict(zip(texts, subject.plain["texts"], strict=True))
    for whose, tokenizer in _tokenizers(engine, name, subject):
        found = {
            what: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for what, text in texts.items()
        }
        yield comparisons.tokens(
            "engine's tokenizer", f"transformers ~ {whose}", expected, found,
            f"{whose}: {TOKENIZER}", subject.tokenizer.decode,
        )  # fmt: skip
    if subject.prompts:
        asked = subject.samples.prompts()
        found = {
            what: encode_messages(subject.run, engine.tokenizer, asked[what])
            for what in subject.prompts
        }
        yield comparisons.tokens(
            "engine's prompts", f"data.template ~ the engine {name}", subject.prompts, found,
            f"{name}: {PROMPT}", subject.tokenizer.decode,
        )  # fmt: skip


def _tokenizers(engine: Engine, name: str, subject: Subject) -> Iterator[tuple[str, Any]]:
    yield f"the engine {name}", engine.tokenizer
    if name == "VLLM":
        from vllm.tokenizers import get_tokenizer

        yield "vLLM itself", get_tokenizer(str(subject.folder))


def by_server(subject: Subject, server: Server) -> Iterator[Comparison]:
    """Compares a server."""
    where = f"transformers ~ {server.model} at {server.url}"
    texts, plain = subject.samples.texts, subject.plain
    found = {what: server.tokens({"prompt": text}) for what, text in texts.items()}
    if any(isinstance(tokens, str) for tokens in found.values()):
        why = f"it has no /tokenize: {next(iter(found.values()))}"
        yield comparisons.skipped("server's tokenizer", where, why)
    else:
        expected = {
            what: _begun(subject, tokens)
            for what, tokens in zip(texts, plain["texts"], strict=True)
        }
        yield comparisons.tokens(
            "server's tokenizer", where, expected, found, f"the server: {TOKENIZER}",
            subject.tokenizer.decode,
        )  # fmt: skip
        if subject.prompts:
            yield _server_prompts(subject, server, where)
    numbers = [server.logprobs(document.ids) for document in subject.documents]
    yield comparisons.logprobs(
        "server's numbers", where, subject.expected, numbers, subject.names, subject.dtype,
        f"the server has another model, or: {NUMBERS}",
    )  # fmt: skip
    yield _server_answers(subject, server, where)


def _begun(subject: Subject, ids: Sequence[int]) -> list[int]:
    """Tokens of a text after those that the tokenizer puts before every text to continue."""
    return [*subject.tokenizer("")["input_ids"], *ids]


def _server_prompts(subject: Subject, server: Server, where: str) -> Comparison:
    asked = subject.samples.prompts()
    found = {}
    for what in subject.prompts:
        given = conversation(subject.run, asked[what])
        body = {"messages": given["messages"]}
        found[what] = "its history has tools" if given["tools"] else server.tokens(body)
    return comparisons.tokens(
        "server's prompts", where, subject.prompts, found, f"the server: {PROMPT}",
        subject.tokenizer.decode,
    )  # fmt: skip


def _server_answers(subject: Subject, server: Server, where: str) -> Comparison:
    decode, count = subject.tokenizer.decode, subject.run.verify.new_tokens
    expected, found = [], []
    for asked, answer in zip(subject.asked, subject.plain["answers"], strict=True):
        tokens = answer["tokens"]
        text = server.answer(asked.ids, count)
        whole = decode(tokens, skip_special_tokens=True)
        same = 0
        if text and whole.startswith(text):  # a server may end the answer earlier
            same = len(tokens)
        else:  # the first token whose text is no longer a beginning of the answer
            while same < len(tokens) and text.startswith(
                decode(tokens[: same + 1], skip_special_tokens=True).rstrip("\ufffd")
            ):
                same += 1
        expected.append(answer)
        other = [f"the text {text!r}"] if same < len(tokens) else []
        found.append([*tokens[:same], *other])
    return comparisons.answers(
        "server's answers", f"{where}, greedy", expected, found, subject.names, subject.dtype,
        f"the server: {ANSWERS}", decode,
    )  # fmt: skip
