"""Every file of a run and of its store, damaged, and what the same command makes of it.

A small model is trained for STEPS steps, exported and asked. Then, for each file, a byte is
turned over, or the second half is cut off, or the file is removed, and the command is given again:

repaired   status 0, and every result is what it was
unread     the file stays damaged, since nothing reads it; so training is continued for a step
           more, and that gives what it gives undamaged
said       status 0, results differ or the file stays damaged, and its name was said
refused    another status, and a message that names the file or the folder it lies in
silent     status 0 and other results, or a status without the name
traceback  a Python traceback

Results are the exported model, the answers and the losses. A byte that a disk turns over without
changing the file's time of change is another matter: what is read from checkpoints and the store
is compared with its hash, exports are not. Of the older checkpoint weights and manifest alone are
damaged: what is true of those of the newest is true of its other files.

Prints a line for each damage; the last line is one flat JSON object. Exits 1 where something was
silent or gave a traceback.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

STEPS = 2
RECORD = ".done"
"""The end of the name of what says from which files, and when written, the answers were made."""
NO_RESULT = ("run/logs/", "run/stages/", "run/deepspeed.json", ".lock", RECORD)
"""Of people, of locks, and the records, which hold times and are written anew."""


def command(root: Path, steps: int) -> list[str]:
    return [
        *(sys.executable, "-m", "easyllm", "+recipe=demo", f"run_dir={root / 'run'}"),
        *(f"data.dir={root / 'store'}", "data.max_documents=40", "data.tokenizer.vocab_size=300"),
        *("parallelism=zero", "~parallelism.pipeline_stages", "hardware.devices_per_node=1"),
        *("data.seq_len=64", "training.evaluate.every=null", f"training.steps={steps}"),
        *("training.checkpoint.every=1", "inference.sampling.max_tokens=4"),
    ]


def given(root: Path, steps: int = STEPS) -> subprocess.CompletedProcess[str]:
    """The command; of more steps it trains only."""
    stages = [] if steps == STEPS else ["stages=[tokenize,shuffle,repartition,train]"]
    words = [*command(root, steps), *stages]
    return subprocess.run(words, cwd=root, capture_output=True, text=True)


def results(root: Path) -> dict[str, object]:
    """What a run is made for."""
    run = root / "run"
    found: dict[str, object] = {
        str(file.relative_to(run)): file.read_bytes()
        for folder in ("export", "inference")
        for file in (run / folder).rglob("*")
        if file.is_file() and not file.name.endswith(RECORD)
    }
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text("utf-8", "replace").splitlines() if metrics.exists() else []
    losses: list[object] = []
    for line in lines:
        try:
            step = json.loads(line)
            losses.append((step["step"], step["loss"]))
        except (ValueError, KeyError):
            losses.append(line)
    return {**found, "losses": losses}


def trained(root: Path) -> dict[str, object]:
    """What training for a step more gives."""
    weights = root / f"run/checkpoints/step-{STEPS + 1:08}/weights"
    found = {file.name: file.read_bytes() for file in weights.glob("*.safetensors")}
    return {**found, "losses": results(root)["losses"]}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x04
    file.write_bytes(content)


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def names(said: str, file: Path) -> bool:
    """Whether a message names the file, or the checkpoint or folder below the run's own that it
    lies in: a name such as ``run`` or ``export`` is in every run's words."""
    text = " ".join(said.split())
    checkpoints = [part for part in file.parts if part.startswith("step-")]
    folder = [] if file.parent.name == "run" else [str(file.parent)]
    return any(part in text for part in (file.name, *checkpoints, *folder))


def judged(
    root: Path, file: str, before: dict[str, object], later: dict[str, object], whole: bytes
) -> str:
    """What the command makes of the damage to ``file``, the name of a kind above."""
    place = root / file
    done = given(root)
    said = done.stdout + done.stderr
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if done.returncode:
        return "refused" if names(said, place) else "silent"
    healed = place.is_file() and place.read_bytes() == whole
    if results(root) == before and (healed or not_a_result(file)):
        return "repaired"
    if names(done.stderr, place):
        return "said"
    if results(root) != before:
        return "silent"
    done = given(root, STEPS + 1)
    if "Traceback (most recent call last)" in done.stdout + done.stderr:
        return "traceback"
    if done.returncode:
        return "refused" if names(done.stdout + done.stderr, place) else "silent"
    if trained(root) == later:
        return "unread"
    return "said" if names(done.stderr, place) else "silent"


def repeats(file: Path) -> bool:
    """Whether a file is of the older checkpoint and neither its weights nor its manifest."""
    older = "step-00000001" in file.parts
    return older and file.name not in ("model.safetensors", "manifest.json")


def not_a_result(file: str) -> bool:
    return any(part in file for part in NO_RESULT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="files whose path holds this text")
    parser.add_argument("--kinds", nargs="+", choices=("flipped", "cut", "gone"))
    asked = parser.parse_args()
    harms: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "gone": Path.unlink}
    told: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        root, pristine = Path(place) / "work", Path(place) / "pristine"
        root.mkdir()
        done = given(root)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        shutil.copytree(root, pristine)
        before = results(root)
        assert given(root, STEPS + 1).returncode == 0
        later = trained(root)
        for whole in sorted(file for file in pristine.rglob("*") if file.is_file()):
            file = str(whole.relative_to(pristine))
            if asked.only not in file or not whole.stat().st_size or repeats(whole):
                continue
            for kind in asked.kinds or harms:
                shutil.rmtree(root)
                shutil.copytree(pristine, root)
                harms[kind](root / file)
                found = judged(root, file, before, later, whole.read_bytes())
                told[found] += 1
                print(f"{found:10} {kind:8} {file}", flush=True)
    tried = sum(told.values())
    kinds = ("repaired", "unread", "said", "refused", "silent")
    counts = {kind: told[kind] for kind in kinds}
    print(json.dumps({"tried": tried, **counts, "tracebacks": told["traceback"]}))
    return int(bool(told["silent"] or told["traceback"]))


if __name__ == "__main__":
    sys.exit(main())
