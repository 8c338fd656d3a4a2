"""Cross entropy over a large vocabulary on one GPU: time and memory of forward and backward.

8,192 tokens of hidden states 4,096 wide and a head of 151,936 rows, in bfloat16. `plain` is the
loss of training over logits, `compiled` the same by torch.compile as `model.compile` has it,
`chunked` computes the logits of 1,024 tokens at a time and again in the backward pass, and
`linear` is `training.loss=linear_cross_entropy`, where torch has it; `--linear FOLDER` takes it
from the two files of a newer torch, `linear_cross_entropy.py` and
`linear_cross_entropy_options.py`. Memory is the peak above hidden states, head and their gradients;
`apart` is the largest ‖difference‖ / ‖reference‖ of the gradients, the reference in float32 over
the first 512 tokens. Under torch's deterministic algorithms, as in training. `--device cpu --tiny`
runs the same in small.

The last line is one flat JSON object. Exits 1 where a difference is 0.02 or more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))

from easyllm.models.layers import causal_loss

WITHIN = 2e-2
CHUNK = 1024


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return causal_loss(hidden @ weight.T, labels, 1 / labels.numel())


def linear(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return causal_loss((hidden, weight), labels, 1 / labels.numel())


def chunked(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()

    def part(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = (states @ weight.T).float()
        return nn.functional.cross_entropy(logits, wanted, reduction="sum")

    pairs = zip(hidden.flatten(0, 1).split(CHUNK), targets.split(CHUNK), strict=True)
    losses: list[Any] = [checkpoint(part, *pair, use_reentrant=False) for pair in pairs]
    return torch.stack(losses).sum() / labels.numel()


def take_linear(folder: Path) -> None:
    """Give this torch a newer one's ``linear_cross_entropy``."""

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"torch.nn.modules.{name}",
                                                      folder / f"{name}.py")  # fmt: skip
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    options: Any = load("linear_cross_entropy_options").LinearCrossEntropyOptions
    whole = load("linear_cross_entropy")

    def fused(states: Any, weight: Any, targets: Any, *, reduction: str, options: Any) -> Any:
        assert reduction == "none"
        fitting = options._adjust(
            num_batches=len(states), in_features=states.shape[1], num_classes=len(weight),
            dtype=states.dtype, device=states.device,
        )  # fmt: skip
        return whole._linear_cross_entropy_batch_chunked_no_reduction(
            states, weight, targets, None, None, -100, fitting.batch_chunk_size,
            fitting.acc_policy, fitting.acc_dtype,
        )  # fmt: skip

    nn.functional.linear_cross_entropy = fused  # type: ignore[attr-defined]
    nn.LinearCrossEntropyOptions = options  # type: ignore[attr-defined]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--linear", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    if asked.linear:
        take_linear(asked.linear)
    device = torch.device(asked.device)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    rows, tokens, width, vocabulary = (2, 64, 32, 1000) if asked.tiny else (2, 4096, 4096, 151_936)
    torch.manual_seed(3)
    with device:
        hidden = torch.randn(rows, tokens, width, dtype=torch.bfloat16)
        weight = (0.02 * torch.randn(vocabulary, width)).bfloat16()
        labels = torch.randint(0, vocabulary, (rows, tokens))
    hidden.requires_grad_()
    weight.requires_grad_()
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "plain": plain, "compiled": torch.compile(plain), "chunked": chunked,
    }  # fmt: skip
    if hasattr(nn.functional, "linear_cross_entropy"):
        ways["linear"] = linear
    few = slice(0, 1), slice(0, 512)
    exact = [part.detach().float().requires_grad_() for part in (hidden[few], weight)]
    wanted = torch.autograd.grad(plain(*exact, labels[few]), exact)
    del exact
    result: dict[str, Any] = {}
    wrong = 0
    for name, way in ways.items():
        try:
            own = [hidden[few].detach().requires_grad_(), weight]
            found = torch.autograd.grad(way(*own, labels[few]), own)
            apart = max(float((a.float() - b).norm() / b.norm())
                        for a, b in zip(found, wanted, strict=True))  # fmt: skip
            del found
            taken, peak = measured(lambda way=way: way(hidden, weight, labels), (hidden, weight),
                                   device, asked.repeats)  # fmt: skip
        except Exception:  # out of memory, say: it is shown, counted, and the next one tried
            traceback.print_exc()
            wrong += 1
            continue
        wrong += not apart < WITHIN
        print(f"{name:10} {taken:9.2f} ms   {peak:6.2f} GB   apart {apart:.2g}", flush=True)
        result |= {f"{name}_ms": round(taken, 3), f"{name}_gb": round(peak, 3),
                   f"{name}_apart": float(f"{apart:.2g}")}  # fmt: skip
    print(json.dumps(result | {"tokens": rows * tokens, "vocabulary": vocabulary, "wrong": wrong}))
    return int(wrong > 0)


def measured(loss: Callable[[], Any], leaves: Any, device: Any, repeats: int) -> Any:
    """Median milliseconds of forward and backward, and gigabytes above the gradients."""
    cuda, taken, peak = device.type == "cuda", [], 0
    for number in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        begin = time.perf_counter()
        found = torch.autograd.grad(loss(), leaves)
        if cuda:
            torch.cuda.synchronize()
            own = before + sum(part.nbytes for part in found)
            peak = torch.cuda.max_memory_allocated() - own
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if number >= 2:
            taken.append(1000 * (time.perf_counter() - begin))
        del found
    return statistics.median(taken), peak / 1e9


if __name__ == "__main__":
    sys.exit(main())
