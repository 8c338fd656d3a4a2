"""What transformers, without easyllm, reads out of exports: ``python read_by_others.py IN OUT``.

IN is JSON: folders by name, and texts, a conversation and token ids to try on each. OUT gets, by
name, what came of them, or the error. The transformers is whichever Python finds first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.modules["easyllm"] = None  # type: ignore[assignment]

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)


def read(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        ids = torch.tensor(asked["ids"])
        found: dict[str, Any] = {
            "logits": model(input_ids=ids).logits,
            "dtype": str(model.dtype),
            "ends": model.generation_config.eos_token_id,
        }
        for name, kind in (("auto", AutoTokenizer), ("as it is", PreTrainedTokenizerFast)):
            tokenizer: Any = kind.from_pretrained(folder)
            chat = tokenizer.apply_chat_template(asked["chat"], add_generation_prompt=True)
            found[name] = {
                "class": type(tokenizer).__name__,
                "texts": tokenizer(asked["texts"])["input_ids"],
                "special": sorted(map(str, tokenizer.all_special_tokens)),
                "chat": list(chat if isinstance(chat, list) else chat["input_ids"]),
            }
        given = tokenizer(asked["texts"][0], return_tensors="pt")
        found["written"] = model.generate(**given, max_new_tokens=4, do_sample=False)[0].tolist()
    return found


def main(asked: Path, out: Path) -> None:
    given = json.loads(asked.read_text("utf-8"))
    found: dict[str, Any] = {"version": transformers.__version__}
    for name, folder in given["folders"].items():
        try:
            found[name] = read(folder, given)
        except Exception as error:  # each folder's is told by the test that is about it
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
