"""Server-sent events of OpenAI's routes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from easyllm.inference.detokenizer import Piece
from easyllm.serving.answers import Pieces
from easyllm.serving.errors import Refused, error_body
from easyllm.serving.routes.openai_formats import Format, usage
from easyllm.serving.service import Note
from easyllm.serving.streaming import Last

MARK = "\0"
"""A text that is never an answer."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


async def events(
    first: Pieces,
    growing: AsyncGenerator[Pieces, None],
    count: int,
    note: Note,
    format_: Format,
) -> AsyncGenerator[bytes, None]:
    """The events of ``count`` answers: chunks, the usage where asked for, ``[DONE]``."""
    chunks = _Chunks(count, note, format_)
    async with aclosing(growing):
        opening = chunks.opening()
        data = chunks.of(first)
        yield type(data)(opening + data)
        try:
            while chunks.unfinished:
                if data := chunks.of(await anext(growing)):
                    yield data
        except Refused as error:  # too late for a status
            yield f"data: {json.dumps(error.body)}\n\n".encode()
        except Exception:
            yield f"data: {json.dumps(error_body(500, 'internal error'))}\n\n".encode()
            raise


class _Chunks:
    """Pieces of answers as events."""

    def __init__(self, count: int, note: Note, format_: Format):
        self.note, self.format, self.unfinished = note, format_, count
        self.usage = format_.asked.usage_in_stream
        self.head = {**format_.head(), "object": format_.chunk_kind}
        self.head |= {"usage": None} if self.usage else {}
        # a chunk is all the same except for its choices
        self.begin = "data: " + json.dumps(self.head)[:-1] + ', "choices": ['
        # most chunks are a text and nothing else: the JSON around it, by answer
        self.around = [
            "".join(map(self._event, format_.deltas(index, Piece(MARK, []), 0))).split(
                _encode(MARK)
            )
            for index in range(count)
        ]
        self.lengths = [0] * count

    def opening(self) -> bytes:
        """What comes before the first piece."""
        choices = self.format.opening(len(self.lengths))
        return "".join(map(self._event, choices)).encode()

    def of(self, pieces: Pieces) -> bytes:
        """The events of some pieces; with those of the last also the end of the stream."""
        parts: list[str] = []
        for index, piece in pieces:
            parts += self._piece(index, piece)
        if not self.unfinished:
            if self.usage:
                last = {**self.head, "choices": [], "usage": usage(self.note)}
                parts.append(f"data: {json.dumps(last)}\n\n")
            parts.append("data: [DONE]\n\n")
        data = "".join(parts).encode()
        return data if self.unfinished else Last(data)

    def _piece(self, index: int, piece: Piece) -> list[str]:
        self.unfinished -= piece.finish_reason is not None
        if self.note.answers is not None:
            self.note.answers[index] += piece.text
        found: list[str] = []
        if piece.text and not (self.format.with_logprobs or piece.finish_reason):
            before, after = self.around[index]
            found.append(f"{before}{quoted(piece.text)}{after}")
        elif piece.text or piece.logprobs or piece.finish_reason:
            found += map(self._event, self.format.deltas(index, piece, self.lengths[index]))
        self.lengths[index] += sum(len(one.text) for one in piece.logprobs)
        return found

    def _event(self, choice: dict[str, Any]) -> str:
        return f"{self.begin}{_encode(choice)}]}}\n\n"
