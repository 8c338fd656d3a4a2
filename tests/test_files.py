"""Files that are whole or absent."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from easyllm.errors import UserError
from easyllm.files import (
    atomic_write,
    full_disk,
    json_line,
    read_json_line,
    read_record,
    try_lock,
    write_record,
)

CONTENT = {"stage": "train", "steps": 12, "losses": [2.5, None, float("inf")], "names": {"é": "x"}}


def flipped(content: bytes) -> Iterator[bytes]:
    """``content`` with one bit turned over, at each place and for each bit."""
    for place in range(len(content)):
        for bit in range(8):
            yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_a_record_is_what_was_written_or_damaged(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_record(file, CONTENT)
    assert read_record(file) == CONTENT
    whole, noticed = file.read_bytes(), 0
    for damaged in flipped(whole):
        file.write_bytes(damaged)
        try:
            found = read_record(file)
        except ValueError:
            noticed += 1
        else:  # a blank between keys, or the digest's own key
            assert {key: found[key] for key in CONTENT} == CONTENT
    assert noticed > 6 * len(whole)
    file.write_text('{"stage": "train"}')  # of a version before there were digests
    assert read_record(file) == {"stage": "train"}


def test_a_line_is_what_was_written_or_damaged() -> None:
    line = json_line(CONTENT)
    assert read_json_line(line) == CONTENT == read_json_line(line + "\n")
    noticed = 0
    for damaged in flipped(line.encode()):
        try:
            found = read_json_line(damaged.decode())
        except ValueError:
            noticed += 1
        else:
            assert {key: found[key] for key in CONTENT} == CONTENT
    assert noticed > 6 * len(line)
    assert read_json_line('{"step": 1}') == {"step": 1}


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs Linux's /dev/full, which is a full disk"
)
def test_a_full_disk_is_told_from_other_errors(tmp_path: Path) -> None:
    with pytest.raises(OSError) as full, Path("/dev/full").open("w") as file:
        file.write("x")
        file.flush()
    assert (said := full_disk(full.value)) and "the disk is full" in said
    with pytest.raises(RuntimeError) as wrapped:
        raise RuntimeError("saving") from full.value
    assert full_disk(wrapped.value)
    assert full_disk(Exception("I/O error: No space left on device (os error 28)"))
    with pytest.raises(OSError) as short:
        np.zeros(1 << 20).tofile("/dev/full")
    assert full_disk(short.value)
    with pytest.raises(OSError) as absent:
        (tmp_path / "absent").read_text()
    assert full_disk(absent.value) is None


def test_machines_that_share_a_disk_write_aside_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of two machines may have the same number."""
    file = tmp_path / "index.json"
    with ExitStack() as both:
        for name in ("one", "two"):
            monkeypatch.setattr("platform.node", lambda name=name: name)
            both.enter_context(atomic_write(file)).write_text(name)
        assert not file.exists() and len(list(tmp_path.iterdir())) == 2
    assert file.read_text() == "one"  # which ends last
    assert list(tmp_path.iterdir()) == [file]


def test_a_lock_is_one_holders(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert try_lock(one)
        assert not try_lock(other)
        one.close()
        assert try_lock(other)


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        (tmp_path / "lock").open("w") as file,
        pytest.raises(UserError, match=r"lock: this file system has no locks \(No locks avail"),
    ):
        try_lock(file)
