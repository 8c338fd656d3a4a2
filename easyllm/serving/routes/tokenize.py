"""``POST /tokenize``: vLLM's route for the tokens of a text or a conversation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from easyllm.serving.errors import Refused
from easyllm.serving.routes.requests import TokenizeRequest
from easyllm.serving.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        """The tokens that the model is given for ``prompt``, or for ``messages``."""
        service.check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise Refused(400, "give one of prompt and messages", "prompt")
        given: Any = asked.prompt if asked.messages is None else asked.messages
        tokens = await service.tokenize(given, asked.add_special_tokens)
        engine, strings = service.ready(), {}
        if asked.return_token_strs:
            strings = {"token_strs": engine.tokenizer.convert_ids_to_tokens(tokens)}
        return {
            "count": len(tokens),
            "max_model_len": engine.max_positions,
            "tokens": tokens,
            **strings,
        }

    return router
