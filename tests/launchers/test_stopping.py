"""SIGTERM where nothing is under way yet: while a spec is checked, machines join, ranks start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from easyllm.__main__ import main
from easyllm.cli import check
from easyllm.launchers.ranks import TERMINATED, free_port
from easyllm.launchers.remote.handshake import SECRET
from tests.launchers.machines import ROOT
from tests.launchers.test_local import started
from tests.support import PATIENCE, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["term", "usr1"])
def test_while_a_spec_is_checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "check", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert main(["+recipe=demo"]) == 75
    assert capsys.readouterr().err == "easyllm: stopped by a signal\n"
    assert signal.getsignal(number) is before
    assert not list(tmp_path.iterdir())


def test_while_machines_join(tmp_path: Path) -> None:
    """Of three the third never comes. One is asked; what asks one asks the run."""
    words = ["+recipe=demo", "stages=[tokenize,train]", "run_dir=run", "hardware.nodes=3",
             "hardware.devices_per_node=1", "parallelism=zero", "~parallelism.pipeline_stages",
             "parallelism.global_batch_size=12"]  # fmt: skip
    port = str(free_port())
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NNODES": "3", SECRET: "s"}
    owner, other = (
        subprocess.Popen(
            [sys.executable, "-m", "easyllm", *words], cwd=tmp_path, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **place, "NODE_RANK": str(rank)},
            text=True,
        )
        for rank in (0, 1)
    )  # fmt: skip

    def joined(process: subprocess.Popen[str]) -> bool:
        connections = psutil.Process(process.pid).net_connections("tcp4")
        return any(found.status == psutil.CONN_ESTABLISHED for found in connections)

    wait_for(lambda: joined(owner) and joined(other))
    other.send_signal(signal.SIGTERM)
    for process in (owner, other):
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 75, said
        assert "Traceback" not in said


def test_before_a_rank_can_hear(tmp_path: Path) -> None:
    """It ends by the signal, and another, which has lost it, fails and is seen first."""
    code = (
        "import os, signal, sys, time\n"
        "def lost(*_): sys.exit(1)\n"
        "if os.environ['RANK'] == '0': signal.signal(signal.SIGTERM, lost)\n"
        "print('ready', flush=True)\n"
        "time.sleep(3600)"
    )
    process = started(tmp_path, code, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == TERMINATED  # of which the dispatcher makes 75
