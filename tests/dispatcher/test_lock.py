"""One command at a time in a run's directory, and a server beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from easyllm.dispatcher.lock import Occupied, held


def test_a_server_leaves_the_directory_to_other_commands(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder, ".serve.lock"):
        (folder / "kept").touch()
        with held(folder), pytest.raises(Occupied), held(folder):
            pass
        with pytest.raises(Occupied), held(folder, ".serve.lock"):
            pass
    assert (folder / "kept").exists()
