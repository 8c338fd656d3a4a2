"""A hang ends the run: every rank's stacks in its log, and who did not arrive."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from easyllm.errors import HUNG
from easyllm.launchers import reports
from easyllm.launchers.local import Local
from easyllm.parallelism.watchdog import Watchdog

ROOT = Path(__file__).parents[2]

WATCHED = """
import faulthandler, os, re, sys, time
from pathlib import Path
from easyllm.parallelism.watchdog import Watchdog
faulthandler.enable()
def asleep(): time.sleep(3600)
def deaf(): re.match("(a+)+$", "a" * 60 + "b")  # holds the interpreter's lock for ages
rank = int(os.environ["RANK"])
watchdog = Watchdog(Path(sys.argv[1]), rank, 1.5)
watchdog.beat("step 7")
(asleep, deaf)[rank]()
"""


def test_ranks_that_hang_end_with_their_stacks(tmp_path: Path) -> None:
    """Rank 0 can tell itself, rank 1 no longer comes back to Python."""
    command = [sys.executable, "-c", WATCHED, str(tmp_path)]
    assert Local().launch(command, 2, tmp_path, {"PYTHONPATH": str(ROOT)}) == HUNG
    for rank, name in enumerate(("asleep", "deaf")):
        log = (tmp_path / f"rank-{rank}.log").read_text()
        assert f"in {name}" in log
    told, fixable = reports.cause(tmp_path, HUNG)
    assert not fixable
    assert "rank 0 took longer than hardware.timeout_s=1.5 s over step 7, busy in asleep" in told
    assert "rank 1 did not answer" in told


def test_beats_keep_a_rank_alive(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from easyllm.parallelism.watchdog import Watchdog\n"
        "watchdog = Watchdog(Path(sys.argv[1]), 0, 1.0)\n"
        "for step in range(8): watchdog.beat(f'step {step}'); time.sleep(0.3)\n"
        "watchdog.stop(); time.sleep(1.5)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert Local().launch(command, 1, tmp_path, {"PYTHONPATH": str(ROOT)}) == 0


WORKING = """
import fcntl, sys, threading, time
from pathlib import Path
from easyllm import heartbeat
from easyllm.files import file_lock
from easyllm.parallelism.watchdog import Watchdog
from easyllm.progress import progress
watchdog = Watchdog(Path(sys.argv[1]), 0, 1.0)
heartbeat.listen(watchdog.alive)
watchdog.beat("reading the token store")
with progress("load weights", 5, "layer", visible=False) as bar:
    for _ in range(5):
        time.sleep(0.3)
        bar.update()
other = Path(sys.argv[1], "lock").open("w")
fcntl.flock(other, fcntl.LOCK_EX)
threading.Timer(1.5, other.close).start()
with file_lock(Path(sys.argv[1], "lock")):
    pass
"""


def test_long_work_is_no_hang(tmp_path: Path) -> None:
    """A bar that moves, and a lock that another process holds, are signs of life."""
    command = [sys.executable, "-c", WORKING, str(tmp_path)]
    assert Local().launch(command, 1, tmp_path, {"PYTHONPATH": str(ROOT)}) == 0


def test_another_threads_work_is_no_sign_of_life(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, 0, 600)
    watchdog.stop()
    before = watchdog.since
    thread = threading.Thread(target=watchdog.alive)
    thread.start()
    thread.join()
    assert watchdog.since == before
    watchdog.alive()
    assert watchdog.since > before


def trained(folder: Path, statement: str, **values: str) -> str:
    """What a run on two ranks says that fails, with ``statement`` in step 3 of rank 1."""
    (folder / "mine").mkdir()
    (folder / "mine" / "odd.py").write_text(
        "import os, time\nfrom dataclasses import dataclass\n"
        "from easyllm.training.schedules import Constant\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Odd(Constant):\n"
        "    def factor(self, step, total):\n"
        f"        if step == 2 and os.environ['RANK'] == '1': {statement}\n"
        "        return super().factor(step, total)\n"
    )
    command = [
        sys.executable, "-m", "easyllm", "+recipe=demo", "stages=[tokenize,train]",
        "data.max_documents=20", "data.seq_len=64", "data.tokenizer.vocab_size=300",
        "parallelism.global_batch_size=8", "training.steps=9", "run_dir=run",
        "--config-dir", "mine", "components.allow=[odd]", "training.schedule._target_=odd.Odd",
        *(f"{key.replace('__', '.')}={value}" for key, value in values.items()),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_the_rank_that_did_not_arrive_is_named(tmp_path: Path) -> None:
    """A schedule of the user's sleeps on rank 1; rank 0 waits for it in a collective."""
    said = trained(tmp_path, "time.sleep(3600)", hardware__timeout_s="45")
    failure = next(line for line in said.splitlines() if "train failed" in line)
    assert "rank 1 took longer than hardware.timeout_s=45 s over step 3, busy in factor" in failure
    assert "waiting for it: rank 0" in failure
    logs = [(tmp_path / f"run/logs/train/rank-{rank}.log").read_text() for rank in (0, 1)]
    assert "odd.py" in logs[1] and "in advance" in logs[1]
    assert "in advance" in logs[0] and "distributed" in logs[0]
    # in a group that DeepSpeed made
    assert "waiting for other ranks in" in (tmp_path / "run/logs/train/error-0.json").read_text()
    assert "p2p.py" in logs[0]


@pytest.mark.slow
def test_the_first_error_is_shown_and_not_what_came_of_it(tmp_path: Path) -> None:
    """Rank 0, whose output is shown, loses its connection to rank 1."""
    said = trained(tmp_path, "raise ValueError('the cause')")
    assert "train failed: rank 1: ValueError: the cause" in said
    assert "Traceback" not in said
    log = (tmp_path / "run/logs/train/rank-1.log").read_text()
    assert "Traceback" in log and "odd.py" in log
