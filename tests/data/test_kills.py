"""Data stages killed at random moments and started again give what undisturbed ones give."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from easyllm.data.store import manifest
from easyllm.files import StagingDir
from easyllm.paths import StorePaths
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.data.conftest import Spec

STAGES = ("tokenize", "shuffle", "repartition")
KILLS = 10
"""Of each stage."""

SCRIPT = """
import sys
from tests.data.conftest import work
from tests.support import run_spec
import json
from pathlib import Path
if __name__ == "__main__":
    folder, config, stage = sys.argv[1:]
    run = run_spec(Path(folder), json.loads(config))
    print("ready", flush=True)
    work(run, stage)
"""


def config(texts: Path) -> dict[str, Any]:
    return {
        "stages": list(STAGES),
        "seed": 7,
        "data": {
            "sources": {
                name: {
                    "_target_": f"easyllm.data.sources.readers.{reader}",
                    "path": str(texts / file),
                }
                for name, reader, file in (
                    ("stories", "Text", "stories.txt"),
                    ("dialogues", "Conversations", "dialogues.tsv"),
                )
            },
            "tokenizer": {
                "_target_": "easyllm.data.tokenizers.components.ByteLevelBPE",
                "vocab_size": 320,
            },
            "partitions": 3,
            "workers": 2,
            "rows_per_file": 10,
        },
    }


def content(store: Path, stage: str) -> dict[str, Any]:
    """Every file of a stage, and what its manifest says but for the times."""
    folder = manifest.folder(StorePaths(store), stage)
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    del files["manifest.json"]
    made = manifest.require(StorePaths(store), stage)
    return {**files, "made": {key: value for key, value in made.items() if key != "metrics"}}


def start(
    folder: Path, texts: Path, stage: str, spec: dict[str, Any] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(spec or config(texts)), stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_each_stage_change_nothing(texts: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    killed = 0
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for stage in STAGES:
        process = start(whole, texts, stage)
        assert process.stdout and process.stdout.readline() == "ready\n"
        began = time.perf_counter()
        finish(process)
        took = time.perf_counter() - began
        for _ in range(KILLS):
            process = start(broken, texts, stage)
            assert process.stdout and process.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0, 0.8 * took))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
        finish(start(broken, texts, stage))
        assert content(broken / "store", stage) == content(whole / "store", stage)
    assert killed, "every process was done before it was killed"
    assert not list((broken / "store").glob(".*"))


def test_only_unfinished_shards_are_made_again(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from easyllm.data import encode_chunk

    run: RunSpec = spec(tmp_path, data={"rows_per_file": 10})
    encoded: list[int] = []
    encode = encode_chunk.encode

    def failing(tokenizer: Any, template: Any, documents: Any) -> Any:
        if len(encoded) == 6:
            raise KeyboardInterrupt
        encoded.append(len(documents))
        return encode(tokenizer, template, documents)

    monkeypatch.setattr(encode_chunk, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        load("tokenize").work(run, Rank())
    assert not (tmp_path / "store/tokens").exists()
    monkeypatch.setattr(encode_chunk, "encode", lambda *a: encoded.append(len(a[2])) or encode(*a))
    metrics = load("tokenize").work(run, Rank())
    assert encoded == [10] * 10
    assert metrics["documents"] == 100
    assert not list((tmp_path / "store").glob(".*"))


def test_a_piece_is_made_again_when_it_differs(tmp_path: Path) -> None:
    staging, made = StagingDir(tmp_path / "tokens"), []

    def make(temporary: Path) -> int:
        temporary.write_text("text")
        made.append(temporary)
        return len(made)

    assert [staging.piece("a/b", 1, make) for _ in range(2)] == [1, 1]
    assert staging.piece("a/b", 2, make) == 2  # from something else
    (staging.folder / "a/b").write_text("cut")
    assert staging.piece("a/b", 2, make) == 3
    staging.piece("stale/c", 1, make)
    staging.finish({"a/b"})
    assert [str(f.relative_to(tmp_path)) for f in sorted(tmp_path.rglob("*"))] == [
        "tokens",
        "tokens/a",
        "tokens/a/b",
    ]
