"""What transformers alone makes of a model, in a process that cannot import easyllm.

``python plain.py QUESTION ANSWER`` reads one JSON file and writes another. Standard library, torch
and transformers only: what this file computes is what anybody's script computes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def answered(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question with the keys of ``easyllm.evaluation.verify.plain_model.ask``."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    folder, remote = question["folder"], question["remote_code"]
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)
    found: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "tokenizer": type(tokenizer).__name__,
        "texts": [
            tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for text in question["texts"]
        ],
        "prompts": [_prompt(tokenizer, prompt) for prompt in question["prompts"]],
    }
    if question["documents"]:
        device = torch.device(question["device"])
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, question["dtype"]), trust_remote_code=remote,
            attn_implementation=question["attention"],
        )  # fmt: skip
        found["model"] = type(model).__name__
        model = model.to(device).eval()
        with torch.no_grad():
            found["logprobs"] = [_logprobs(model, ids, device) for ids in question["documents"]]
            found["answers"] = [
                _answer(model, ids, question["new_tokens"], device) for ids in question["asked"]
            ]
        if question["gradient"]:
            found["grad_norm"] = _grad_norm(model, question["gradient"], device)
    return found


def _prompt(tokenizer: Any, prompt: dict[str, Any]) -> Any:
    """The tokens of a conversation's prompt, or the reason why the template gives none."""
    try:
        return tokenizer.apply_chat_template(
            prompt["messages"], tools=prompt["tools"], add_generation_prompt=True, tokenize=True,
            return_dict=False, **prompt["arguments"],
        )  # fmt: skip
    except Exception as error:  # a template is a program
        return f"{type(error).__name__}: {error}"


def _logprobs(model: Any, ids: list[int], device: Any) -> list[float]:
    import torch

    row = torch.tensor([ids], device=device)
    logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
    chosen = logits.log_softmax(dim=-1).gather(1, row[0, 1:, None])
    values: list[float] = chosen.squeeze(1).tolist()
    return values


def _grad_norm(model: Any, ids: list[int], device: Any) -> float:
    """The norm of the gradient of a document's mean loss."""
    import torch

    row = torch.tensor([ids], device=device)
    logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
    torch.nn.functional.cross_entropy(logits, row[0, 1:]).backward()
    gradients = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(gradients).sum().sqrt())


def _answer(model: Any, ids: list[int], count: int, device: Any) -> dict[str, list[Any]]:
    """The likeliest tokens one after the other, each with its distance to the second, in nats. No
    cache is used, which would be one more thing to be right."""
    import torch

    tokens: list[int] = []
    margins: list[float] = []
    for _ in range(count):
        row = torch.tensor([ids + tokens], device=device)
        best = model(input_ids=row, use_cache=False).logits[0, -1].float().topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return {"tokens": tokens, "margins": margins}


if __name__ == "__main__":
    sys.modules["easyllm"] = None  # type: ignore[assignment]  # an import raises ImportError
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(answered(asked)), "utf-8")
