"""Answers as text: tokens become characters as they come, and texts of ``stop`` end them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from easyllm.inference.engines import Engine, FinishReason, TokenLogprob
from easyllm.spec.inference import SamplingSpec


@dataclass
class Piece:
    """What an answer has grown by. The texts of all pieces together are the answer."""

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    """Given in the last piece, and only there."""


async def answer(
    engine: Engine, prompt: Sequence[int], sampling: SamplingSpec
) -> AsyncGenerator[Piece, None]:
    """One answer to a prompt; closing the generator aborts it. Raises as ``Engine.generate``."""
    text = TextStream(engine.tokenizer, sampling.stop)
    async with aclosing(engine.generate(prompt, sampling)) as steps:
        async for step in steps:
            grown, taken = "", 0
            for token in step.tokens:
                grown += text.feed(token)
                taken += 1
                if text.stopped:
                    break
            reason = step.finish_reason
            if not text.stopped and reason is not None:
                grown += text.finish()
            if text.stopped:
                reason = "stop"
            yield Piece(grown, step.tokens[:taken], step.logprobs[:taken], reason)
            if reason is not None:
                return


class TextStream:
    """Turns an answer's tokens into text, special tokens left out.

    What may be the beginning of a stop text, and bytes that are no whole character yet, are
    held back until the next tokens tell.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self.stopped = False
        """Whether a stop text has come; what precedes it has been given."""
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._ids: list[int] = []
        self._decoded = ""
        self._held = ""
        self._stream: Any = None
        if tokenizer.is_fast:
            from tokenizers.decoders import DecodeStream

            self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, token: int) -> str:
        """Text that the token has made certain."""
        self._ids.append(token)
        if self._stream is not None:
            new = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        else:
            new = self._whole().rstrip("\ufffd")[len(self._decoded) :]
        self._decoded += new
        return self._search(new)

    def finish(self) -> str:
        """What was held back, the answer being over."""
        whole = self._whole()
        rest = whole[len(self._decoded) :] if whole.startswith(self._decoded) else ""
        text = self._search(rest)
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _whole(self) -> str:
        if self._stream is not None:
            text: str = self._tokenizer.backend_tokenizer.decode(self._ids)
        else:
            text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text

    def _search(self, new: str) -> str:
        if not self._stop:
            return new
        text = self._held + new
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
