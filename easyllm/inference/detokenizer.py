"""Answers as text: tokens become text as they arrive, and texts of ``stop`` end an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from easyllm.inference.engine_protocol import Engine, FinishReason, TokenLogprob
from easyllm.inference.token_texts import HALF, TokenText, TokenTexts
from easyllm.spec.inference import SamplingSpec


@dataclass
class Piece:
    """The next part of an answer. The texts of all pieces together are the answer."""

    text: str
    tokens: list[int]
    logprobs: list[TokenText] = field(default_factory=list)
    """Where ``sampling.logprobs`` is given, the tokens whose texts are certain by now. Their
    texts in all pieces together are the answer too."""
    finish_reason: FinishReason | None = None
    """Given in the last piece, and only there."""


def prompt_piece(
    tokenizer: Any, prompt: Sequence[int], text: str | None, logprobs: Sequence[TokenLogprob] | None
) -> Piece:
    """A prompt as the first piece of an answer that repeats it; ``text`` is what the prompt was
    given as, if not as tokens. ``logprobs`` are those of its tokens after the first, or None."""
    stream = TextStream(tokenizer)
    texts = TokenTexts(tokenizer, stream.would_add)
    whole = ""
    for token, logprob in zip(
        prompt, [TokenLogprob(prompt[0], 0.0), *(logprobs or ())], strict=False
    ):
        texts.ask(logprob)
        whole += stream.feed(token)
        texts.grow(stream.new)
    whole += stream.finish()
    texts.end(stream.new)
    found = texts.certain(len(whole), over=True)
    found[0].logprob = None
    return Piece(whole if text is None else text, [], [] if logprobs is None else found)


async def answer(
    engine: Engine, prompt: Sequence[int], sampling: SamplingSpec, ending: bool = False
) -> AsyncGenerator[Piece, None]:
    """One answer to a prompt; closing the generator aborts it. With ``ending`` the
    log-probabilities include the token that ended the answer, without a text. Raises as
    ``Engine.generate``."""
    text = TextStream(engine.tokenizer, sampling.stop)
    texts = None if sampling.logprobs is None else TokenTexts(engine.tokenizer, text.would_add)
    async with aclosing(engine.generate(prompt, sampling)) as steps:
        async for step in steps:
            grown, taken = "", 0
            for token in step.tokens:
                if texts is not None:
                    texts.ask(step.logprobs[taken])
                grown += text.feed(token)
                taken += 1
                if texts is not None:
                    texts.grow(text.new)
                if text.stopped:
                    break
            reason = step.finish_reason
            if not text.stopped and reason is not None:
                grown += text.finish()
                if texts is not None:
                    texts.end(text.new)
                    if ending and step.end is not None and not text.stopped:
                        texts.ask(step.end)
                        texts.grow("")
            if text.stopped:
                reason = "stop"
            logprobs = [] if texts is None else texts.certain(len(grown), reason is not None)
            yield Piece(grown, step.tokens[:taken], logprobs, reason)
            if reason is not None:
                return


class TextStream:
    """Turns an answer's tokens into text, special tokens left out.

    What may be the beginning of a stop text, and bytes that are not a whole character yet, are
    held back until the next tokens decide.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self.stopped = False
        """Whether a stop text was found; the text before it has been given."""
        self.new = ""
        """The text that the last token, or the end, has added, before the search for stop texts."""
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        # Decoders depend on a token's neighbours. So the new text is the difference between the
        # decoded last tokens that added something, with and without those that came since.
        self._before: list[int] = []
        self._since: list[int] = []
        self._held = ""
        self._stream = self._streaming([]) if tokenizer.is_fast else None

    def feed(self, token: int) -> str:
        """Text that the token has made certain."""
        self._since.append(token)
        self.new = self._step(token)
        if self.new:
            self._before, self._since = self._since, []
        return self._search(self.new)

    def finish(self) -> str:
        """The text that was held back, at the answer's end."""
        self.new = self._more([]) if self._since else ""
        text = self._search(self.new)
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def would_add(self, token: int) -> str:
        """Text that ``token`` would add if it came next; none where it ends in half a character."""
        more = self._more([token])
        return "" if more.endswith(HALF) else more

    def _step(self, token: int) -> str:
        if self._stream is not None:
            try:
                return self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
            except Exception:  # tokenizers raises nothing narrower
                # Bytes that are no character also change how the bytes before them are decoded.
                # That text was given already and is kept; a new stream begins here.
                self._stream = self._streaming(self._since)
        more = self._more([])
        return "" if more.endswith(HALF) else more

    @staticmethod
    def _streaming(ids: list[int]) -> Any:
        from tokenizers.decoders import DecodeStream

        return DecodeStream(ids, skip_special_tokens=True)

    def _more(self, tokens: list[int]) -> str:
        return self._decode([*self._before, *self._since, *tokens])[
            len(self._decode(self._before)) :
        ]

    def _decode(self, ids: list[int]) -> str:
        if self._stream is not None:
            return str(self._tokenizer.backend_tokenizer.decode(ids))
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

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
