"""Attention inside documents on one GPU: is it right, does it repeat its bits, how long it takes.

The implementations of `model.attention` that stay within documents, each as the model's layers
call it, forward and backward in bfloat16. First one row of 4,096 tokens with 8 heads that share 2
of keys and values, as 1, 8 and 200 documents, without and with a window of 512 tokens: the
largest ‖difference‖ / ‖reference‖ of the output and the three gradients, where the reference is
computed document by document in float32 on the CPU, and whether a second run gives the same bits
under torch's deterministic algorithms. Then the median milliseconds of forward and backward, under
those algorithms and (`free`) without them: four rows of 4,096 tokens with 32 heads that share 8,
and, as `small`, eight rows of 2,048 tokens with 16 heads of 64 numbers. `--device cpu --tiny` runs
what a machine without a GPU can: `sdpa`, in small, where the times mean nothing.

The last line is one flat JSON object. Exits 1 where a difference is 0.01 or more or bits differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from easyllm.models.attention import flex
from easyllm.models.attention.documents import Documents, attend_by_document
from easyllm.models.attention.flex import attend_by_flex
from easyllm.models.attention.varlen import attend_by_varlen

WITHIN = 1e-2
ATTEND = {"sdpa": attend_by_document, "varlen": attend_by_varlen, "flex": attend_by_flex}
WINDOW = 512


@dataclass(frozen=True)
class Shape:
    rows: int
    heads: int
    shared: int
    size: int
    tokens: int

    def given(self, seed: int) -> list[torch.Tensor]:
        """Queries, keys, values and the gradient of the output, in bfloat16 on the CPU."""
        made = torch.Generator().manual_seed(seed)
        return [
            torch.randn(self.rows, heads, self.tokens, self.size, generator=made).bfloat16()
            for heads in (self.heads, self.shared, self.shared, self.heads)
        ]

    def flops(self, lengths: list[int]) -> float:
        """Of forward and backward pass over causal documents of these lengths in each row."""
        pairs = sum(length * (length + 1) / 2 for length in lengths) * self.rows
        return 3.5 * 4 * pairs * self.heads * self.size


CHECKED = Shape(1, 8, 2, 128, 4096)
TIMED = {"large": Shape(4, 32, 8, 128, 4096), "small": Shape(8, 16, 16, 64, 2048)}
TINY = Shape(1, 4, 2, 16, 400)


def lengths_of(count: int, tokens: int) -> list[int]:
    """Lengths of ``count`` documents that fill a row, no two neighbours alike."""
    if count == 1:
        return [tokens]
    ends = torch.randperm(tokens - 1, generator=torch.Generator().manual_seed(count))[: count - 1]
    bounds = [0, *sorted((ends + 1).tolist()), tokens]
    return [end - begin for begin, end in itertools.pairwise(bounds)]


def positions(shape: Shape, lengths: list[int], device: torch.device) -> torch.Tensor:
    row = torch.cat([torch.arange(length) for length in lengths])
    return row.repeat(shape.rows, 1).to(device)


def passes(
    name: str, shape: Shape, given: list[torch.Tensor], where: torch.Tensor, window: int | None
) -> Callable[[], list[torch.Tensor]]:
    """Forward and backward pass of one implementation: the output and the gradients."""
    module: Any = SimpleNamespace(
        num_key_value_groups=shape.heads // shape.shared, is_causal=True, training=True
    )
    documents = Documents.of(where)
    leaves = [part.to(where.device).requires_grad_() for part in given[:3]]
    grad = given[3].to(where.device).transpose(1, 2).contiguous()

    def both() -> list[torch.Tensor]:
        out, _ = ATTEND[name](
            module, *leaves, None, scaling=shape.size**-0.5, documents=documents,
            sliding_window=window, dropout=0.0,
        )  # fmt: skip
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return both


def fresh() -> None:
    """Forget what was compiled for other shapes, which else makes it general and slower."""
    torch._dynamo.reset()
    flex._compiled.cache_clear()


def check(name: str, shape: Shape, count: int, window: int | None, device: torch.device) -> Any:
    """The largest relative difference, and whether the bits are repeated."""
    given, lengths = shape.given(count), lengths_of(count, shape.tokens)
    exact = passes("sdpa", shape, [part.float() for part in given],
                   positions(shape, lengths, torch.device("cpu")), window)()  # fmt: skip
    both = passes(name, shape, given, positions(shape, lengths, device), window)
    first, again = both(), both()
    apart = [float((a.cpu().double() - b.double()).norm() / b.double().norm())
             for a, b in zip(first, exact, strict=True)]  # fmt: skip
    same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    return max(apart, key=lambda number: number if number == number else float("inf")), same


def milliseconds(both: Callable[[], Any], device: torch.device, repeats: int) -> float:
    taken = []
    for number in range(repeats + 3):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            both()
            end.record()
            torch.cuda.synchronize()
            spent = begin.elapsed_time(end)
        else:
            start = time.perf_counter()
            both()
            spent = 1000 * (time.perf_counter() - start)
        if number >= 3:
            taken.append(spent)
    return statistics.median(taken)


def repeatable(wanted: bool) -> None:
    torch.use_deterministic_algorithms(wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=ATTEND, default=list(ATTEND))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    names = ["sdpa"] if device.type == "cpu" else asked.only
    counts = [1, 8, 20 if asked.tiny else 200]
    result: dict[str, Any] = {}
    wrong = 0

    def told(key: str, work: Callable[[], dict[str, Any]]) -> None:
        """Say and keep what ``work`` finds; one that fails does not end the others."""
        nonlocal wrong
        try:
            found = work()
        except Exception as error:
            traceback.print_exc()
            found, wrong = {"failed": str(error).splitlines()[0][:200]}, wrong + 1
        print(f"{key:24} " + "   ".join(f"{k} {v}" for k, v in found.items()), flush=True)
        result.update({f"{key}_{k}": v for k, v in found.items()})

    def checked(name: str, count: int, window: int | None) -> dict[str, Any]:
        nonlocal wrong
        apart, same = check(name, TINY if asked.tiny else CHECKED, count, window, device)
        wrong += not (apart < WITHIN and same)
        return {"apart": float(f"{apart:.2g}"), "same_bits": same}

    def timed(
        name: str, shape: Shape, count: int, window: int | None, repeats: int
    ) -> dict[str, Any]:
        lengths = lengths_of(count, shape.tokens)
        where = positions(shape, lengths, device)
        both = passes(name, shape, shape.given(1), where, window)
        found: dict[str, Any] = {}
        for key, wanted in (("ms", True), ("free_ms", False)):
            repeatable(wanted)
            found[key] = round(milliseconds(both, device, repeats), 3)
        repeatable(True)
        if window is None:
            found["tflops"] = round(shape.flops(lengths) / found["ms"] / 1e9, 1)
        return found

    repeatable(True)
    window = 40 if asked.tiny else WINDOW
    for name in names:
        for kept in (None, window):
            fresh()
            for count in counts:
                told(f"{name}_{count}{'_window' if kept else ''}",
                     lambda n=name, c=count, w=kept: checked(n, c, w))  # fmt: skip
    for size, shape in ({"tiny": TINY} if asked.tiny else TIMED).items():
        for name in names:
            for kept in (None, window) if size == "large" else (None,):
                fresh()
                for count in counts if size == "large" else (1,):
                    repeats = 3 if name == "sdpa" and count == counts[-1] else asked.repeats
                    told(f"{size}_{name}_{count}{'_window' if kept else ''}",
                         lambda n=name, s=shape, c=count, w=kept, r=repeats:
                         timed(n, s, c, w, r))  # fmt: skip
    print(json.dumps(result | {"wrong": wrong, "within": WITHIN}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
