"""A store, two small models and the launches that all tests of training share."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from easyllm.launchers.local import Local
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.support import LLAMA, merged, run_spec

STEPS = 5
GLOBAL_BATCH = 8
WORDS = ("the", "a", "cat", "dog", "tree", "river", "stone", "sees", "likes", "finds", "near")
MODELS = {
    "untied": {**LLAMA, "num_hidden_layers": 4},
    "tied": {
        **LLAMA,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
}
"""Grouped-query attention in the one, shared embeddings and a padding row in the other."""
ZERO = "easyllm.parallelism.layouts.Zero"
PIPELINE = "easyllm.parallelism.layouts.Pipeline"


@dataclass(frozen=True)
class Small:
    """A folder with a store of conversations and models to start from."""

    root: Path

    def config(self, model: str, parallelism: Mapping[str, Any], ranks: int) -> dict[str, Any]:
        """Plain configuration of a run of ``STEPS`` steps on ``ranks`` ranks."""
        return {
            "stages": ["train", "export"],
            "seed": 3,
            "model": {"path": str(self.root / model), "dtype": "float32"},
            "data": {
                "dir": str(self.root / "store"),
                "seq_len": 48,
                "packing": "best_fit",
                "tokenizer": {
                    "_target_": "easyllm.data.tokenizers.components.ByteLevelBPE",
                    "vocab_size": 400,
                },
                "template": {"_target_": "easyllm.data.chat.templates.Plain"},
                "workers": 1,
                "sources": {
                    "talk": {
                        "_target_": "easyllm.data.sources.readers.Conversations",
                        "path": str(self.root / "talk.tsv"),
                    }
                },
            },
            "parallelism": {"global_batch_size": GLOBAL_BATCH, "micro_batch_size": 2}
            | dict(parallelism),
            "hardware": {"devices_per_node": ranks},
            "training": {
                "steps": STEPS,
                # small enough to be at work in every step
                "gradient_clipping": 0.2,
                "optimizer": {"lr": 3e-3, "weight_decay": 0.1},
                "schedule": {"_target_": "easyllm.training.schedules.Linear", "warmup": 2},
                "evaluate": {"fraction": 0.1, "max_rows": 7},
            },
        }


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("small")
    drawn = random.Random(5)
    lines = [
        "\t".join(" ".join(drawn.choices(WORDS, k=drawn.randint(2, 14))) for _ in range(2 * turns))
        for turns in drawn.choices((1, 1, 2), k=150)
    ]
    (root / "talk.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    made = Small(root)
    run = run_spec(root, made.config("untied", {"_target_": ZERO}, 1))
    load("tokenize").work(run, Rank())
    for name, config in MODELS.items():
        torch.manual_seed(1)
        LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(root / name)
    return made


@dataclass(frozen=True)
class Trained:
    """What the ranks of one launch left."""

    root: Path
    ranks: int

    def metrics(self, case: str, run: str = "") -> list[dict[str, Any]]:
        self.check(case, run)
        lines = (self.root / (run or case) / "run" / "metrics.jsonl").read_text("utf-8")
        return [json.loads(line) for line in lines.splitlines()]

    def seen(self, case: str, run: str = "") -> list[dict[str, Any]]:
        """By rank: ``samples`` read, the ``report`` or the ``error``."""
        self.check(case, run)
        folder = self.root / (run or case)
        return [
            json.loads((folder / f"{case}.rank-{rank}.json").read_text("utf-8"))
            for rank in range(self.ranks)
        ]

    def log(self, rank: int) -> str:
        logs = sorted(self.root.glob(f"logs-*/rank-{rank}.log"))
        return "".join(log.read_text("utf-8") for log in logs)

    def check(self, case: str, run: str = "") -> None:
        """Fail the test that asks for a case which ended the ranks."""
        failed = self.root / (run or case) / f"{case}.failed"
        if failed.is_file():
            pytest.fail(f"{case} ended the ranks:\n{failed.read_text('utf-8')}")


RELAUNCHES = 3
"""Cases that may end the ranks before the whole launch fails."""


def launch(root: Path, ranks: int, cases: list[dict[str, Any]], expected: int = 0) -> Trained:
    """Train ``cases`` on one set of ranks, which end with the status that is ``expected``. A case
    trains in ``root/<run>``, by default its own. One that ends the ranks fails the tests that ask
    for it; those after it are trained by other ranks."""
    for case in cases:
        case["folder"] = str(root / case.get("run", case["name"]))
        Path(case["folder"]).mkdir(parents=True, exist_ok=True)
    left = cases
    for number in range(1 + RELAUNCHES):
        (root / "cases.json").write_text(json.dumps(left), "utf-8")
        command = [sys.executable, "-m", "tests.training.ranks", str(root / "cases.json")]
        logs = root / f"logs-{number}"
        status = Local().launch(command, ranks, logs, {"OMP_NUM_THREADS": "1"})
        if status == expected:
            return Trained(root, ranks)
        output = "\n".join(log.read_text("utf-8")[-3000:] for log in sorted(logs.iterdir()))
        place = next((n for n, case in enumerate(left) if not _ended(case, ranks)), None)
        if expected or place is None:
            break
        case, left = left[place], left[place + 1 :]
        (Path(case["folder"]) / f"{case['name']}.failed").write_text(output, "utf-8")
    pytest.fail(f"the ranks ended with status {status}:\n{output}")


def _ended(case: dict[str, Any], ranks: int) -> bool:
    """Whether all ranks have written what they saw of a case."""
    written = (f"{case['name']}.rank-{rank}.json" for rank in range(ranks))
    return all((Path(case["folder"]) / name).is_file() for name in written)


def layouts(ranks: int) -> dict[str, dict[str, Any]]:
    """The layouts to compare, by name."""
    if ranks == 4:
        return {
            "pipe2-data2-zero0": {"_target_": PIPELINE, "zero_stage": 0},
            "pipe2-data2-zero1": {"_target_": PIPELINE, "zero_stage": 1},
            "pipe4-data1": {"_target_": PIPELINE, "pipeline_stages": 4},
        }
    zeros = {f"zero{zero}": {"_target_": ZERO, "zero_stage": zero} for zero in range(4)}
    pipes = {
        f"pipe2-data1-zero{zero}": {"_target_": PIPELINE, "zero_stage": zero} for zero in (0, 1)
    }
    one = {"pipe1-data2": {"_target_": PIPELINE, "pipeline_stages": 1}}
    recomputed = {
        "pipe2-recomputed": {"_target_": PIPELINE, "checkpoint_activations": True},
        "zero3-recomputed": {"_target_": ZERO, "zero_stage": 3, "checkpoint_activations": True},
    }
    return zeros | pipes | one | recomputed


def comparisons(small: Small, ranks: int) -> list[dict[str, Any]]:
    return [
        {"name": f"{model}-{name}", "config": small.config(model, layout, ranks)}
        for name, layout in layouts(ranks).items()
        for model in (MODELS if "recomputed" not in name else ("untied",))
    ]


MOVES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "2x1-1x2-1x1": (
        "tied",
        [
            {"_target_": PIPELINE},
            {"_target_": PIPELINE, "pipeline_stages": 1},
            {"_target_": ZERO},
        ],
    ),
    "zero1-zero0-pipe": (
        "untied",
        [
            {"_target_": ZERO, "zero_stage": 1},
            {"_target_": ZERO, "zero_stage": 0},
            {"_target_": PIPELINE, "pipeline_stages": 1, "zero_stage": 0},
        ],
    ),
    "zero3-zero1-zero3": (
        "tied",
        [{"_target_": ZERO, "zero_stage": zero, "micro_batch_size": 1} for zero in (3, 1, 3)],
    ),
    "pipe0-zero2-zero0": (
        "untied",
        [
            {"_target_": PIPELINE, "zero_stage": 0},
            {"_target_": ZERO, "zero_stage": 2},
            {"_target_": ZERO, "zero_stage": 0},
        ],
    ),
}
"""By name: the model, and layouts that one run goes through: two of two ranks, then one of one."""


@pytest.fixture(scope="session")
def moved(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Trained]:
    """Runs that are stopped after two steps of each layout: what two ranks left, and one."""
    root = tmp_path_factory.mktemp("moved")
    on: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for name, (model, chain) in MOVES.items():
        for place, layout in enumerate(chain):
            ranks = 2 if place < 2 else 1
            case = {"name": f"{name}-{place}", "run": name}
            case["config"] = small.config(model, layout, ranks)
            stop = (2 * place + 1) * GLOBAL_BATCH
            on[ranks].append(case | ({"stop_at": stop} if place < 2 else {}))
    return launch(root, 2, on[2]), launch(root, 1, on[1])


@pytest.fixture(scope="session")
def on_two(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return launch(tmp_path_factory.mktemp("on_two"), 2, comparisons(small, 2))


@pytest.fixture(scope="session")
def on_four(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return launch(tmp_path_factory.mktemp("on_four"), 4, comparisons(small, 4))


RESUMED = {
    "pipe": {"_target_": PIPELINE},
    "zero1": {"_target_": ZERO, "zero_stage": 1},
    "zero3": {"_target_": ZERO, "zero_stage": 3},
}
"""Layouts in which runs are stopped and taken up again."""


def add_other_runs(add: Callable[..., None], often: Mapping[str, Any]) -> None:
    """The run ``often``, damaged and with other settings."""
    zero = RESUMED["zero1"]
    faster = merged(often, {"training": {"optimizer": {"lr": 1e-2, "beta1": 0.8}}})
    last = f"step-0000000{STEPS + 1}"
    flip = [("flip", f"{last}/optimizer/rank-00001.safetensors")]
    add("flipped", zero, often, run="often", damage=flip)
    remove = [("remove", f"{last}/optimizer/rank-00001.safetensors")]
    add("bereft", zero, often, run="often", damage=remove)
    add("faster", zero, faster, run="often")
    weights = merged(faster, {"training": {"resume": "weights", "steps": 3}})
    stop = {"stop_at": GLOBAL_BATCH + 1, "signal": "SIGUSR1"}
    add("weights-stopped", zero, weights, run="often", **stop)
    add("weights", zero, weights, run="often")
    everything = [("remove", "step-*/manifest.json")]
    add("lost", zero, weights, run="often", damage=everything)
    add("never", zero, merged(weights, {"training": {"resume": "never"}}), run="often")


def add_loops(add: Callable[..., None]) -> None:
    """Runs that save while they train, run out of time, are profiled, wait for their data."""
    often = {"steps": 4, "checkpoint": {"every": 1, "keep": 4, "asynchronous": True}}
    for name, layout in RESUMED.items():
        add(f"async-{name}", layout, {"training": often})
    zero3, run = RESUMED["zero3"], "async-broken"
    add("async-stopped", zero3, {"training": often}, run=run, stop_at=GLOBAL_BATCH + 1)
    add("async-resumed", zero3, {"training": often}, run=run)
    wild = {"optimizer": {"lr": 1e30}, "schedule": {"warmup": 0}}
    add("async-wild", RESUMED["zero1"], {"training": merged(often, wild)})
    for number, budget in enumerate([0.001, "1s", "1h30m"]):
        timed = {"training": {"steps": 4, "max_runtime": budget}}
        more = {"slow_data": 0.3} if budget == "1s" else {}
        add(f"budget-{number}", RESUMED["pipe"], timed, run="budget", **more)
    profile = {"training": {"steps": 4, "profile": {"start": 2, "steps": 2}}}
    add("profiled", RESUMED["pipe"], profile, slow_data=0.02)


@pytest.fixture(scope="session")
def many_runs(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Runs that are stopped, damaged, prolonged, mistaken: one case after the other."""
    cases: list[dict[str, Any]] = []

    def add(name: str, layout: Mapping[str, Any], over: Mapping[str, Any], **more: Any) -> None:
        config = merged(small.config(more.pop("model", "tied"), layout, 2), over)
        cases.append({"name": name, "config": config, **more})

    for name, layout in RESUMED.items():
        steps = {"training": {"steps": 4}}
        add(f"whole-{name}", layout, steps)
        add(f"stopped-{name}", layout, steps, run=f"broken-{name}", stop_at=GLOBAL_BATCH + 1)
        add(f"resumed-{name}", layout, steps, run=f"broken-{name}")
        for model in MODELS:
            add(f"untrained-{model}-{name}", layout, {"training": {"steps": 0}}, model=model)
        add(f"bf16-{name}", layout, {"model": {"dtype": "bfloat16"}})
        add(f"unclipped-{name}", layout, {"training": {"steps": 1, "gradient_clipping": 0}})
    board = {"board": {"_target_": "easyllm.trackers.tensorboard.TensorBoard"}}
    often = {
        "training": {
            "checkpoint": {"every": "0.001s", "keep": 2},  # no step is as fast
            "evaluate": {"every": 2},
            "trackers": board,
        },
        "hardware": {"peak_tflops": 0.01},
    }
    zero = RESUMED["zero1"]
    add("often", zero, often)
    last = f"step-0000000{STEPS}"
    add("damaged", zero, often, run="often", damage=[("cut", f"{last}/weights/*.safetensors")])
    add("again", zero, often, run="often")
    add("longer", zero, merged(often, {"training": {"steps": STEPS + 1}}), run="often")
    add("shorter", zero, merged(often, {"training": {"steps": 2}}), run="often")
    add("other-data", zero, merged(often, {"data": {"seq_len": 32}}), run="often")
    add_other_runs(add, merged(often, {"training": {"steps": STEPS + 1}}))
    add("epochs", zero, {"training": {"steps": None, "epochs": 0.1}})
    fresh = {"init": "random", "path": None, "config": {**LLAMA, "vocab_size": 100}}
    add("small-vocabulary", zero, {"model": fresh})
    wild = {"checkpoint": {"every": 1}, "optimizer": {"lr": 1e30}, "schedule": {"warmup": 0}}
    add("wild", zero, {"training": wild})
    skip = {"steps": 3, "on_nonfinite": "skip", "checkpoint": {"every": 1, "keep": 3}}
    for name, layout in (RESUMED | {"zero0": {"_target_": ZERO, "zero_stage": 0}}).items():
        over = {"training": merged(wild, skip)}
        add(f"skipping-{name}", layout, over)
    add_loops(add)
    return launch(tmp_path_factory.mktemp("many_runs"), 2, cases)
