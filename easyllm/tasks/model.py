"""What all models have in common that easyllm gives to lm-eval. Imports lm-eval."""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import TemplateLM


class TokenizedModel(TemplateLM):  # type: ignore[misc]
    """Texts become tokens as by lm-eval's own class for transformers."""

    def __init__(self, tokenizer: Any, max_length: int):
        super().__init__()
        self.tokenizer, self.max_length = tokenizer, max_length

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is None:  # a chat template has written the first token already
            first = self.tokenizer.bos_token
            add_special_tokens = not (first and string.startswith(first))
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        return ids
