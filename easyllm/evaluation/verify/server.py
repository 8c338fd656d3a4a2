"""A server with OpenAI's routes, as its clients see it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from easyllm.errors import UserError

PATIENCE = 120.0
"""Seconds that an answer may take."""


NEUTRAL = {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""Sampling that takes the likeliest token, whatever a server has by default."""
FURTHER = {"repetition_penalty": 1, "top_k": -1, "min_p": 0, "min_tokens": 0, "ignore_eos": True}
"""The same in parameters of the servers of ``KIN``."""
KIN = ("easyllm", "vllm")
"""Owners that servers name for their models."""


class Server:
    def __init__(self, url: str):
        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            models = self._asked("/v1/models")["data"]
            self.model: str = models[0]["id"]
            self.neutral = NEUTRAL | (FURTHER if models[0].get("owned_by") in KIN else {})
        except (KeyError, TypeError, IndexError):
            raise UserError(f"verify.url={url}: the server lists no model") from None

    def tokens(self, given: dict[str, Any]) -> list[int] | str:
        """The tokens of ``{"prompt": ...}`` or ``{"messages": ...}`` by vLLM's route, or why there
        are none."""
        try:
            found = self._asked("/tokenize", {"model": self.model, **given})
        except UserError as error:
            return str(error)
        tokens: list[int] = found["tokens"]
        return tokens

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """The log-probabilities of the tokens after the first."""
        choice = self._completed(ids, echo=True, logprobs=1, max_tokens=1)
        values: list[float] = choice["logprobs"]["token_logprobs"][1 : len(ids)]
        return values

    def answer(self, ids: Sequence[int], count: int) -> str:
        """The greedy answer of ``count`` tokens as text."""
        text: str = self._completed(ids, max_tokens=count, **self.neutral)["text"]
        return text

    def _completed(self, ids: Sequence[int], **options: Any) -> dict[str, Any]:
        body = {"model": self.model, "prompt": list(ids), "temperature": 0, **options}
        choice: dict[str, Any] = self._asked("/v1/completions", body)["choices"][0]
        return choice

    def _asked(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(self.url + path)
        request.add_header("Content-Type", "application/json")
        if key := os.environ.get("EASYLLM_API_KEY"):
            request.add_header("Authorization", f"Bearer {key}")
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=PATIENCE) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise UserError(self._refusal(path, error.code, error.read(2000))) from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"verify.url: {self.url}{path} cannot be read: {error}; is the server running?"
            ) from None

    def _refusal(self, path: str, status: int, body: bytes) -> str:
        where = f"verify.url: {self.url}{path} answers {status}"
        if status in (401, 403):
            return f"{where}: give the server's API key in the environment as EASYLLM_API_KEY"
        try:
            said = json.loads(body)["error"]
            return f"{where}: {said['message'] if isinstance(said, dict) else said}"
        except (ValueError, KeyError, TypeError):
            return f"{where}; it is not a server with OpenAI's routes"
