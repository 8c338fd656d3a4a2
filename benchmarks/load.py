"""Bytes read and memory taken by a rank that loads its stage of four, against a rank that loads
the model with ``from_pretrained``.

A random Llama of GB gigabytes in float32 is written in three shards. Each rank loads in its
turn, after the files have been dropped from the page cache, so that the kernel's own count
(``read_bytes`` in /proc/self/io, read-ahead included) is that of a rank alone on its node.
Memory is the highest resident size during loading less that before it, mapped pages counted.
The last line is one JSON object: the most of any rank of ours over that of theirs. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

STAGES = 4
LIMIT = 1 / 3
"""Of either ratio, at most."""
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


class Meter:
    """What this process reads from disk and holds in memory from now on."""

    def __init__(self, folder: Path):
        for file in folder.glob("*.safetensors"):
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
        self.read, self.held = self._read(), self._status("VmRSS")
        self.begin = time.perf_counter()

    def stop(self) -> dict[str, float]:
        return {
            "bytes": self._read() - self.read,
            "memory": self._status("VmHWM") - self.held,
            "seconds": time.perf_counter() - self.begin,
        }

    @staticmethod
    def _read() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


def write_model(folder: Path, gigabytes: float) -> int:
    """Write the model; returns the bytes of its weights."""
    import torch
    from transformers import LlamaConfig

    from easyllm.models.families import Llama
    from easyllm.models.layers import tensor_shapes
    from easyllm.models.weights import plan_shards, shard_name, write_index, write_shard

    shape = Llama().shape({**CONFIG, "num_hidden_layers": 1})
    layers = round((gigabytes * 1e9 / 4 - 2 * shape.embedding_parameters) / shape.layer_parameters)
    config = LlamaConfig(**CONFIG, num_hidden_layers=layers, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    shapes = tensor_shapes(Llama().layers(config, "sdpa"))
    sizes = {name: 4 * shape.numel() for name, shape in shapes.items()}
    plan, files = plan_shards(sizes, sum(sizes.values()) / 3), {}
    for number, names in enumerate(plan):
        file = shard_name(number, len(plan))
        write_shard(folder / file, {name: 0.02 * torch.randn(shapes[name]) for name in names})
        with (folder / file).open("rb") as written:
            os.fsync(written.fileno())  # pages that are not on disk yet cannot be dropped
        files |= dict.fromkeys(names, file)
    write_index(folder, files, sizes)
    return sum(sizes.values())


def touch(module: Any) -> None:
    """Use every weight once, so that what is mapped and not read yet is counted."""
    for parameter in module.parameters():
        parameter.sum()


def load_stage(folder: Path) -> dict[str, float]:
    """Load this rank's stage with the training engine of the pipeline."""
    from easyllm.parallelism import world

    device = world.start("cpu")
    from easyllm.components import resolver
    from easyllm.models.config import hf_config
    from easyllm.models.families import Llama
    from easyllm.models.layers import param_specs
    from easyllm.models.weights import WeightFiles
    from easyllm.parallelism.engine import TrainEngine
    from easyllm.parallelism.partition import stage_bounds
    from easyllm.parallelism.pipeline import PipelineTrainEngine
    from easyllm.spec.schema import read

    rank = int(os.environ["RANK"])

    class Stage(PipelineTrainEngine):
        """Reads its layers when it is this rank's turn, and is not trained."""

        def __init__(self, *args: Any, **parts: Any):
            TrainEngine.__init__(self, *args, **parts)
            self.built, self.known = 0, deque()
            self.load_stage()

        def build(self, spec: Any) -> Any:
            if not self.built:
                while rank and not (folder / f"done-{rank - 1}").exists():
                    time.sleep(0.02)
                self.meter = Meter(folder)
            layer = super().build(spec)
            touch(layer)
            self.built += 1
            bounds = stage_bounds(param_specs(self.layers), self.layout, self.run.data.seq_len)
            if self.built == bounds[rank + 1] - bounds[rank]:
                self.found = self.meter.stop()
                (folder / f"done-{rank}").touch()
            return layer

    pipeline = "easyllm.parallelism.layouts.Pipeline"
    run, problems = read(
        {
            "model": {"path": str(folder), "dtype": "float32", "cache": str(folder)},
            "parallelism": {"_target_": pipeline, "pipeline_stages": STAGES},
            "hardware": {"device": "cpu", "devices_per_node": STAGES},
            "run_dir": str(folder / "run"),
        },
        resolver(),
    )
    assert not problems, problems
    config, family = hf_config(run), Llama()
    weights = WeightFiles(folder)
    stage = Stage(
        run, run.parallelism, layers=family.layers(config, "sdpa"),
        assembly=family.assembly(config, "sdpa", None), weights=weights, device=device,
    )  # fmt: skip
    world.wait_for_all()
    return {**stage.found, "counted": weights.bytes_read}


def load_whole(folder: Path) -> dict[str, float]:
    """Load all of the model with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    meter = Meter(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    touch(model)
    return {**meter.stop(), "counted": sum(p.nbytes for p in model.parameters())}


def ranks(folder: Path) -> dict[str, list[dict[str, float]]]:
    """By side what each rank measured."""
    from easyllm.launchers.local import Local

    command = [sys.executable, __file__, "--folder", str(folder), "--side"]
    threads = {"OMP_NUM_THREADS": "1"}
    if status := Local().launch([*command, "ours"], STAGES, folder / "logs", threads):
        sys.exit(status)
    for rank in range(STAGES):
        env = {**os.environ, **threads, "RANK": str(rank)}
        subprocess.run([*command, "theirs"], env=env, check=True, capture_output=True)
    return {
        side: [json.loads((folder / f"{side}-{rank}.json").read_text()) for rank in range(STAGES)]
        for side in ("ours", "theirs")
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        found = {"ours": load_stage, "theirs": load_whole}[asked.side](asked.folder)
        file = asked.folder / f"{asked.side}-{os.environ['RANK']}.json"
        file.write_text(json.dumps(found))
        sys.stdout.flush()
        os._exit(0)  # the process group may hang an ordinary exit
    with tempfile.TemporaryDirectory() as name:
        weights = write_model(Path(name), asked.gb)
        found = ranks(Path(name))
    print(f"{weights / 1e9:.2f} GB of weights, {STAGES} stages")
    print(f"{'':8} {'rank':>4} {'read':>8} {'memory':>8} {'tensors':>8} {'seconds':>8}")
    for side, lines in found.items():
        for rank, line in enumerate(lines):
            sizes = [f"{line[key] / 1e9:6.2f}GB" for key in ("bytes", "memory", "counted")]
            print(f"{side:8} {rank:4} {' '.join(sizes)} {line['seconds']:8.1f}")
    most = {
        key: max(line[key] for line in found["ours"]) / max(line[key] for line in found["theirs"])
        for key in ("bytes", "memory")
    }
    result = {
        "bytes_ratio": round(most["bytes"], 3),
        "memory_ratio": round(most["memory"], 3),
        "gb": round(weights / 1e9, 2),
        "stages": STAGES,
        "limit": round(LIMIT, 3),
    }
    print(json.dumps(result))
    return int(max(most.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
