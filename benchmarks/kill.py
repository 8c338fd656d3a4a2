"""A run killed with SIGKILL again and again, against one that nobody disturbs.

The tiny model of the demo is trained on two ranks, STEPS steps with a checkpoint every EVERY.
Then the same run again in another directory, killed KILLS times: within a save, at a moment of
training or while it starts; all its processes, or one rank only. Each time the same command goes
on. Nothing may differ between the two: the weights and the state of the optimizer at the end,
the lines of ``metrics.jsonl`` (loss, norm of the gradient, learning rate, tokens), those too that
a life logged before it was killed.

A kill counts as within a save where a checkpoint was being written when the process stood still.
The last line is one flat JSON object. Exits 1 where anything differs, or where fewer than
IN_SAVE kills met a save.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from easyllm.files import read_json

STEPS, EVERY, KILLS, IN_SAVE = 60, 5, 25, 8
COMPARED = ("step", "loss", "grad_norm", "lr", "tokens", "trained_tokens")
LAYOUTS = {
    "pipeline": ["parallelism=pipeline"],
    **{
        f"zero{n}": [
            "parallelism=zero",
            "~parallelism.pipeline_stages",
            f"parallelism.zero_stage={n}",
        ]
        for n in range(4)
    },
}
for _name, _words in list(LAYOUTS.items()):  # saving while training goes on
    LAYOUTS[f"{_name}-async"] = [*_words, "training.checkpoint.asynchronous=true"]
PATIENCE = 300
"""Seconds without the awaited moment after which the benchmark gives up."""


def command(root: Path, run: str, layout: str, stages: str) -> list[str]:
    return [
        *(sys.executable, "-m", "easyllm", "+recipe=demo", f"stages=[{stages}]"),
        *(f"run_dir={root / run}", f"data.dir={root / 'store'}", *LAYOUTS[layout]),
        *(f"training.steps={STEPS}", f"training.checkpoint.every={EVERY}"),
        *("data.seq_len=64", "parallelism.global_batch_size=8", "parallelism.micro_batch_size=2"),
        *(
            "hardware.devices_per_node=2",
            "training.evaluate.fraction=0",
            "training.evaluate.every=null",
        ),
    ]


def run_whole(root: Path, run: str, layout: str, stages: str) -> None:
    done = subprocess.run(
        command(root, run, layout, stages), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{run} ended with status {done.returncode}:\n{done.stdout.decode()[-4000:]}")


class Life:
    """One start of the run that is killed."""

    def __init__(self, root: Path, layout: str):
        self.folder = root / "killed"
        self.begun_at = newest_step(self.folder)
        self.log = (root / "killed.log").open("ab")
        self.process = subprocess.Popen(
            command(root, "killed", layout, "train"), stdout=self.log, stderr=self.log
        )
        self.began = time.monotonic()

    def ranks(self) -> list[psutil.Process]:
        """By rank, as far as they have started."""
        with contextlib.suppress(psutil.Error):
            return [
                child
                for child in psutil.Process(self.process.pid).children(recursive=True)
                if "easyllm.worker" in child.cmdline()
            ]
        return []

    def wait_for(self, moment: Callable[[], bool]) -> None:
        while not moment():
            if self.process.poll() is not None:
                told = Path(self.log.name).read_text("utf-8", "replace")[-4000:]
                sys.exit(f"the run ended with status {self.process.returncode}:\n{told}")
            if time.monotonic() - self.began > PATIENCE:
                self.process.kill()
                sys.exit(f"nothing to kill in {PATIENCE} s")
            time.sleep(0.002)

    def kill(self, victim: int | None) -> bool:
        """Kill one rank, or all processes; whether a checkpoint was being written."""
        ranks = self.ranks()
        everything = [psutil.Process(self.process.pid), *ranks]
        victims = everything if victim is None or len(ranks) < 2 else [ranks[victim]]
        for process in victims:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        saving = being_saved(self.folder)
        for process in victims:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        psutil.wait_procs(ranks, PATIENCE)
        self.log.close()
        return saving


def being_saved(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.part"))


def newest_step(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def logged(run: Path) -> list[dict[str, Any]]:
    """Whole lines of ``metrics.jsonl``, what is compared of them."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for text in (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True):
            if text.endswith("\n"):
                line = json.loads(text)
                found.append({key: line[key] for key in COMPARED})
    return found


def live_and_die(root: Path, layout: str, kind: str, drawn: random.Random) -> tuple[bool, str]:
    """One life of the run, ended in a way of this ``kind``; whether within a save, and how."""
    life = Life(root, layout)
    victim = drawn.choice([None, 0, 1])
    run, begun = life.folder, life.begun_at
    if kind == "start":
        life.wait_for(lambda: len(life.ranks()) == 2)
        time.sleep(drawn.uniform(0, 8))
    else:
        # at the first save to come or the one after, or a few steps on
        ahead = EVERY * drawn.choice([1, 1, 2]) if kind == "save" else drawn.randint(1, EVERY + 1)
        target = begun + min(ahead, max(1, STEPS - EVERY - begun))
        life.wait_for(lambda: any(line["step"] >= target for line in logged(run)[-1:]))
        if kind == "save" and target % EVERY == 0:
            life.wait_for(lambda: being_saved(run) or newest_step(run) >= target)
            time.sleep(drawn.uniform(0, 0.12))
        else:
            time.sleep(drawn.uniform(0, 0.3))
    saving = life.kill(victim)
    who = "all" if victim is None else f"rank {victim}"
    return saving, f"{who} killed {'within a save' if saving else f'at a moment of {kind}'}"


def differing(root: Path) -> Iterator[str]:
    """What differs between the two runs at their ends."""
    whole, killed = (root / name for name in ("whole", "killed"))
    if logged(whole) != logged(killed):
        yield "metrics.jsonl"
    last = Path("checkpoints") / f"step-{STEPS:08}" / "manifest.json"
    one, other = (read_json(run / last)["files"] for run in (whole, killed))
    yield from (name for name in {**one, **other} if one.get(name) != other.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--layout", choices=LAYOUTS, default="pipeline")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    drawn = random.Random(asked.seed)
    in_save = min(IN_SAVE, asked.kills // 3)
    kinds = ["save"] * (in_save + asked.kills // 5) + ["start"] * (asked.kills // 6)
    kinds += ["training"] * (asked.kills - len(kinds))
    drawn.shuffle(kinds)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        run_whole(root, "data", asked.layout, "tokenize,shuffle,repartition")
        run_whole(root, "whole", asked.layout, "train")
        expected = logged(root / "whole")
        assert [line["step"] for line in expected] == list(range(1, STEPS + 1))
        kills_in_save = one_rank = 0
        wrong: list[str] = []
        for number, kind in enumerate(kinds, 1):
            saving, told = live_and_die(root, asked.layout, kind, drawn)
            kills_in_save += saving
            one_rank += told.startswith("rank")
            there = logged(root / "killed")
            if there != expected[: len(there)]:
                wrong.append(f"metrics.jsonl after kill {number}")
            step = newest_step(root / "killed")
            print(f"{number:3}  {told}, {len(there)} steps logged, {step} saved", flush=True)
        run_whole(root, "killed", asked.layout, "train")
        wrong += differing(root)
        for name in wrong:
            print("differs:", name)
    result = {
        "identical": not wrong,
        "kills": len(kinds),
        "kills_in_save": kills_in_save,
        "kills_of_one_rank": one_rank,
        "layout": asked.layout,
    }
    print(json.dumps(result))
    return int(bool(wrong) or kills_in_save < in_save)


if __name__ == "__main__":
    sys.exit(main())
