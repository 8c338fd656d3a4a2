"""The local launcher, with real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from easyllm.launchers.local import Local
from easyllm.launchers.ranks import FEW_THREADS
from easyllm.spec import checks
from tests.support import PATIENCE, run_spec, wait_for

LAUNCHER = """
import sys
from pathlib import Path
from easyllm.launchers.local import Local
command = [sys.executable, "-c", sys.argv[2]]
sys.exit(Local(grace=float(sys.argv[4])).launch(command, int(sys.argv[3]), Path(sys.argv[1]), {}))
"""


def launch(logs: Path, code: str, ranks: int = 1, grace: float = 1.0, **env: str) -> int:
    return Local(grace=grace).launch([sys.executable, "-c", code], ranks, logs, env)


def started(logs: Path, code: str, ranks: int, grace: float = 2.0) -> subprocess.Popen[bytes]:
    """The launcher in a process of its own, once every rank has written 'ready'."""
    words = [str(logs), code, str(ranks), str(grace)]
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, *words])
    ready = [logs / f"rank-{n}.log" for n in range(ranks)]
    wait_for(lambda: all(log.exists() and b"ready" in log.read_bytes() for log in ready))
    return process


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_every_rank_finds_its_place(tmp_path: Path) -> None:
    code = "import os; print(*(os.environ[k] for k in os.environ['KEYS'].split()))"
    keys = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE LOCAL_SIZE MASTER_ADDR MASTER_PORT"
    assert launch(tmp_path, code, ranks=3, KEYS=keys) == 0
    lines = [(tmp_path / f"rank-{n}.log").read_text().split() for n in range(3)]
    assert [line[:6] for line in lines] == [
        [str(n)] * 2 + ["3"] * 3 + ["127.0.0.1"] for n in (0, 1, 2)
    ]
    assert len({line[6] for line in lines}) == 1


def test_threads_are_shared_out_and_do_not_spin_unless_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", FEW_THREADS)
    code = f"import os; print(*map(os.environ.get, {names}))"
    log = tmp_path / "rank-0.log"
    launch(tmp_path, code, ranks=2)
    assert log.read_text() == "1 passive 1\n"
    launch(tmp_path, code, ranks=1)
    assert log.read_text() == "None passive None\n"
    launch(tmp_path, code, ranks=2, OMP_NUM_THREADS="3", OMP_WAIT_POLICY="active")
    assert log.read_text() == "3 active None\n"


def test_rank_0_is_shown_as_it_comes_and_logs_hold_all(tmp_path: Path, capfd) -> None:
    code = (
        "import os, sys; n = os.environ['RANK'];"
        "sys.stderr.write(f'bar {n} 1\\rbar {n} 2\\r'); sys.stderr.flush();"
        "os.write(1, b'\\xff done ' + n.encode())"
    )
    assert launch(tmp_path, code, ranks=2) == 0
    shown = capfd.readouterr().err
    assert "bar 0 1\rbar 0 2\r" in shown and "bar 1" not in shown
    for n in (b"0", b"1"):
        expected = b"bar %b 1\rbar %b 2\r\xff done %b" % (n, n, n)
        assert (tmp_path / f"rank-{n.decode()}.log").read_bytes() == expected


def test_output_arrives_before_the_rank_ends(tmp_path: Path) -> None:
    code = (
        "import pathlib, time; print('ready'); go = pathlib.Path(r'%s');\n"
        "while not go.exists(): time.sleep(0.01)"
    ) % (tmp_path / "go")
    process = started(tmp_path, code, 1)
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), ("sys.exit(75)", 75)],
)
def test_status(tmp_path: Path, end: str, status: int) -> None:
    assert launch(tmp_path, f"import os, sys; {end}") == status


def test_a_failing_rank_ends_the_others_and_its_status_counts(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(0.5 if os.environ['RANK'] == '1' else 3600)\n"
        "sys.exit(4)"
    )
    assert launch(tmp_path, code, ranks=3, grace=0.5) == 4
    assert not any(alive(int((tmp_path / f"rank-{n}.log").read_text())) for n in range(3))


def test_the_others_are_asked_before_they_are_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys, time\n"
        "def end(*_): print('asked'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"ready = pathlib.Path(r'{tmp_path}') / 'ready'\n"
        "if os.environ['RANK'] == '0': ready.touch(); time.sleep(3600)\n"
        "while not ready.exists(): time.sleep(0.01)\n"
        "sys.exit(4)"
    )
    assert launch(tmp_path, code, ranks=2, grace=2 * PATIENCE) == 4
    assert (tmp_path / "rank-0.log").read_text() == "asked\n"


def test_what_a_rank_leaves_behind_is_ended(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "print(child.pid)"
    )
    assert launch(tmp_path, code) == 0
    child = int((tmp_path / "rank-0.log").read_text())
    wait_for(lambda: not alive(child))


def test_logs_of_an_earlier_launch_go(tmp_path: Path) -> None:
    launch(tmp_path, "print('old')", ranks=2)
    launch(tmp_path, "print('new')", ranks=1)
    assert [log.name for log in tmp_path.iterdir()] == ["rank-0.log"]
    assert (tmp_path / "rank-0.log").read_text() == "new\n"


SAVING = (
    "import os, signal, sys, time\n"
    "def save(*_): time.sleep({}); print('saved'); sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, save)\n"
    "print('ready')\n"
    "time.sleep(3600)"
)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, -signal.SIGINT)],
    ids=["term", "usr1", "ctrl-c"],
)
def test_a_signal_lets_the_ranks_save(
    tmp_path: Path, number: signal.Signals, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """For longer than the grace that ranks have when another one has failed."""
    process = started(tmp_path, SAVING.format("int(os.environ['RANK'])"), 2, grace=0.2)
    process.send_signal(number)
    assert process.wait(PATIENCE) == status  # KeyboardInterrupt reaches the top
    assert all("saved" in (tmp_path / f"rank-{n}.log").read_text() for n in range(2))
    assert ("press it again to stop at once" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_a_second_ctrl_c_stops_without_saving(tmp_path: Path) -> None:
    process = started(tmp_path, SAVING.format(3600), 2)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1)
    assert process.wait(PATIENCE) == -signal.SIGINT
    assert not any("saved" in (tmp_path / f"rank-{n}.log").read_text() for n in range(2))


@pytest.mark.parametrize("deaf", [False, True])
def test_ctrl_c_ends_every_rank(tmp_path: Path, deaf: bool) -> None:
    code = (
        "import os, signal, subprocess, sys, time\n"
        f"if {deaf}: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "print(os.getpid(), child.pid, 'ready')\n"
        "time.sleep(3600)"
    )
    process = started(tmp_path, code, 2)
    process.send_signal(signal.SIGINT)
    if deaf:
        time.sleep(1)
        process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == -signal.SIGINT
    pids = [
        int(pid) for n in range(2) for pid in (tmp_path / f"rank-{n}.log").read_text().split()[:2]
    ]
    wait_for(lambda: not any(alive(pid) for pid in pids))


def test_the_callers_handler_comes_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    launch(tmp_path, "pass")
    assert signal.getsignal(signal.SIGTERM) is before


def test_launches_from_a_thread(tmp_path: Path) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(launch(tmp_path, "exit(2)")))
    thread.start()
    thread.join(PATIENCE)
    assert found == [2]


def test_many_nodes_are_refused_only_where_ranks_would_start(tmp_path: Path) -> None:
    config = {
        "hardware": {
            "nodes": 8,
            "devices_per_node": 1,
            "launcher": {"_target_": "easyllm.launchers.local.Local"},
        },
        "training": {"steps": 1},
        "parallelism": {"global_batch_size": 8},
    }
    assert not list(checks.problems(run_spec(tmp_path, config)))
    config["stages"] = ["train"]
    config["model"] = {"path": "some/model"}
    (problem,) = checks.problems(run_spec(tmp_path, config))
    assert (problem.key, problem.value) == ("hardware.nodes", 8)
    assert "hardware.launcher._target_" in problem.remedy


def test_a_killed_rank_is_the_cause_though_another_fails_first(tmp_path: Path) -> None:
    """Rank 1 is killed by the machine; rank 0 loses its connection and is looked at first."""
    code = (
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '0': sys.exit(1)\n"
        "time.sleep(0.1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert launch(tmp_path, code, ranks=2) == 128 + signal.SIGKILL
