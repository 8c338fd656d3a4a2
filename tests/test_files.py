"""Files that are whole or absent."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from easyllm.files import new_file


def test_machines_that_share_a_disk_write_aside_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of two machines may have the same number."""
    file = tmp_path / "index.json"
    with ExitStack() as both:
        for name in ("one", "two"):
            monkeypatch.setattr("platform.node", lambda name=name: name)
            both.enter_context(new_file(file)).write_text(name)
        assert not file.exists() and len(list(tmp_path.iterdir())) == 2
    assert file.read_text() == "one"  # which ends last
    assert list(tmp_path.iterdir()) == [file]
