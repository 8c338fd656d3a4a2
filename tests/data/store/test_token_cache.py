"""The node's copy of a store: built by several processes, one for all, and only where it fits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from easyllm import runfile
from easyllm.data.dataset.rows import open_rows
from easyllm.data.store import build_token_cache, shards
from easyllm.data.store.shards import Shard
from easyllm.data.store.token_cache import open_cache
from easyllm.errors import UserError
from easyllm.spec.run import RunSpec
from tests.data.made import tokens_store

TOKENS = 3_000_000
LENGTH = 1000


def large(folder: Path, **changes: object) -> RunSpec:
    """A store of four files, of which one source has masks."""
    draw = np.random.default_rng(0)
    sources: dict[str, list[Shard]] = {"talk": [], "text": []}
    for number in range(4):
        ids = draw.integers(0, 30_000, TOKENS // 4, np.int32)
        offsets = np.arange(0, TOKENS // 4 + 1, LENGTH)
        trained = draw.random(len(ids)) < 0.5
        name = ("talk", "text")[number % 2]
        sources[name].append(Shard(ids, offsets, trained if name == "talk" else None))
    data = {"seq_len": 2048, "packing": "best_fit", "cache": str(folder / "node")}
    run = tokens_store(folder, sources, data=data, **changes)
    runfile.save(run, folder / "run.yaml")
    return run


def test_the_number_of_processes_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_token_cache, "WORTH_A_PROCESS", 1)
    made = []
    for workers in (1, 3):
        run = large(tmp_path / str(workers))
        object.__setattr__(run.data, "workers", workers)
        cache, manifest = open_cache(run)
        assert cache.seconds > 0
        assert cache.conversations == {"talk"}
        names = (
            build_token_cache.TOKENS,
            build_token_cache.TRAINED,
            build_token_cache.OFFSETS,
            build_token_cache.HASHES,
        )
        made.append([(cache.folder / name).read_bytes() for name in names])
        assert cache.bytes == sum(map(len, made[-1]))
        wanted = sum(source["checksum"] for source in manifest["sources"].values()) % (1 << 64)
        assert shards.checksum(cache.hashes) == wanted
    assert made[0] == made[1]


READER = """
import json, os, sys
from pathlib import Path
import psutil
from easyllm import runfile
from easyllm.data.dataset.rows import open_rows
run = runfile.load(Path(sys.argv[1]))
print(flush=True); sys.stdin.readline()
idle = psutil.Process().memory_full_info().uss
rows = open_rows(run)
total = 0
for index in range(int(sys.argv[2]), rows.per_epoch, 3):
    total += int(rows.sample(index).input_ids.sum())
used = psutil.Process().memory_full_info().uss - idle
held = {os.stat(f"/proc/self/fd/{fd}").st_ino for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")}
print(json.dumps({"used": used, "held": sorted(held), "total": total}), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_ranks_of_a_node_hold_one_copy(tmp_path: Path) -> None:
    """Three processes read disjoint rows: all the same file, none of its bytes its own."""
    run = large(tmp_path)
    rows = open_rows(run)
    rows.sample(0)
    cache, _ = open_cache(run)
    command = [sys.executable, "-c", READER, str(tmp_path / "run.yaml")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    found = []
    for rank in ranks:
        assert rank.stdin and rank.stdout
        rank.stdout.readline()
        rank.stdin.write("\n")
        rank.stdin.flush()
        found.append(json.loads(rank.stdout.readline()))
    for rank in ranks:
        rank.communicate("\n")
    inode = (cache.folder / build_token_cache.TOKENS).stat().st_ino
    assert all(inode in rank["held"] for rank in found)
    share = 5 * TOKENS // 3  # bytes of ids and masks that a rank has read
    assert all(rank["used"] < 4_500_000 < share for rank in found), [r["used"] for r in found]
    whole = sum(int(rows.sample(index).input_ids.sum()) for index in range(rows.per_epoch))
    assert sum(rank["total"] for rank in found) == whole


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x04
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


FILES = (
    build_token_cache.TOKENS,
    build_token_cache.TRAINED,
    build_token_cache.OFFSETS,
    build_token_cache.HASHES,
)
MAP = (
    *FILES, build_token_cache.INDEX,
    "starts.npy", "lengths.npy", "slots.npy", "facts.json", f"{build_token_cache.TOKENS}.xxh3",
)  # fmt: skip


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "gone"])
@pytest.mark.parametrize("name", MAP)
def test_a_damaged_map_is_named_and_made_again_once_removed(
    name: str, harm: Callable[[Path], None], tmp_path: Path
) -> None:
    run = large(tmp_path)

    def read() -> list[int]:
        rows = open_rows(run)
        return [int(rows.sample(index).input_ids.sum()) for index in range(rows.per_epoch)]

    whole = read()
    cache, _ = open_cache(run)
    files = list(cache.folder.rglob(name))
    assert files
    for file in files:
        harm(file)
    with pytest.raises(UserError) as refused:
        read()
    what, remedy = refused.value.parts
    assert name.removesuffix(".xxh3") in what
    folder = Path(remedy.removeprefix("remove ").partition(",")[0])
    assert folder.is_relative_to(tmp_path / "node")
    for file in files:
        shutil.rmtree(file.parent)
    assert read() == whole


def test_a_tokenizer_that_is_not_the_stores_is_refused(tmp_path: Path) -> None:
    run = large(tmp_path)
    (tmp_path / "store/tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"store/tokenizer is not the tokenizer with which "):
        open_rows(run)


SMALL_DISK = """
import shutil, subprocess, sys
from pathlib import Path
from easyllm import runfile
from easyllm.data.dataset.rows import open_rows
from easyllm.errors import UserError
folder, size, blind = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "blind"
node = folder / "node"
node.mkdir(exist_ok=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(node)], check=True)
if blind:
    shutil.disk_usage = lambda path: type("usage", (), {"free": 1 << 60})
try:
    rows = open_rows(runfile.load(folder / "run.yaml"))
    print("left", *sorted(file.name for file in node.rglob("*.int32")))
    if not blind:
        filler = node / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(node).free - 40_960))
    rows.sample(0)
    print("fits")
except UserError as error:
    print("UserError", error)
    print("left", *sorted(file.name for file in node.rglob("*.int32")))
"""


def on_small_disk(folder: Path, size: str, blind: bool = False) -> list[str]:
    """What opening the rows prints where ``data.cache`` is a disk of its own, of this size."""
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no mount of its own here: `unshare --user --mount` is not allowed")
    how = "blind" if blind else "seeing"
    command = [*apart, sys.executable, "-c", SMALL_DISK, str(folder), size, how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    run = large(tmp_path)
    needed = 5 * TOKENS + 8 * (2 * TOKENS // LENGTH + 1)
    said, left = on_small_disk(tmp_path, "8m")
    assert said.startswith(f"UserError data.cache={run.data.cache}: the map of the token store ")
    assert f"takes {needed:,} bytes, and its disk has 8,388,608 free; make room, or give" in said
    assert left == "left"


def test_a_disk_that_fills_up_meanwhile_is_said(tmp_path: Path) -> None:
    run = large(tmp_path)
    said, left = on_small_disk(tmp_path, "8m", blind=True)
    assert said == (
        f"UserError data.cache={run.data.cache}: its disk is full; make room, or give "
        "data.cache=<a folder on a larger disk>"
    )
    assert left == "left", "nothing half-made stays"


def test_a_plan_without_room_is_said(tmp_path: Path) -> None:
    large(tmp_path)
    opened, said, left = on_small_disk(tmp_path, "24m")
    assert opened == left == f"left {build_token_cache.TOKENS}"
    assert "the plan of an epoch's rows takes" in said
