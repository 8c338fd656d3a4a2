"""Files that are complete or absent: written to a temporary file, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from easyllm.errors import UserError
from easyllm.heartbeat import beat

DIGEST = "digest"
"""The key of a record that holds the record's digest."""


FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's error numbers for a full disk."""

CHECKSUM = ', "crc32": '
"""The text before the checksum in a line of JSON Lines."""


def full_disk(error: BaseException) -> str | None:
    """The message about an error whose cause is a full disk or an exceeded quota; None for another
    error."""
    cause: BaseException | None = error
    while cause is not None:
        if _says_full(cause):
            file = getattr(cause, "filename", None)
            what = f"{file} cannot be written" if file else "a file cannot be written"
            return (
                f"{what}: the disk is full, or a quota is exceeded; make room and give the same "
                "command again, which keeps what is finished"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    text = str(error)
    # libraries in other languages (safetensors, arrow, torch) raise their own kinds of errors, with
    # the system's words; numpy reports only that fewer numbers were written than it had
    short = isinstance(error, OSError) and text.endswith(" written")
    return short or any(os.strerror(code) in text for code in FULL)


def flush(path: Path) -> None:
    """Force a file, or the entries of a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path, kind: str = "part") -> Path:
    """A name that only this process uses: on a shared disk, a process of another machine may have
    the same number."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.{kind}")


@contextlib.contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path to write to; it becomes ``path`` when the block succeeds, and is removed otherwise.

    A file that is not ``durable`` may be lost when the machine loses power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(path)
        if durable:
            flush(path.parent)
    except OSError as error:
        if error.filename is None:  # an error of writing to an open file has no file name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


class AtomicDir:
    """An empty folder to fill, ``temporary``, that is to become ``path``."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, _beside(path)
        self.discard()
        self.temporary.mkdir(parents=True)

    def install(self) -> None:
        """Give the folder its name. An existing folder at ``path`` is replaced only then."""
        _install(self.temporary, self.path)

    def discard(self) -> None:
        """Remove the folder if it has not been given its name."""
        shutil.rmtree(self.temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes ``path`` when the block succeeds.

    An existing folder at ``path`` is replaced only then.
    """
    folder = AtomicDir(path)
    try:
        yield folder.temporary
        folder.install()
    finally:
        folder.discard()


def clear_leftovers(path: Path) -> None:
    """Remove temporary files beside ``path`` that ended processes of this machine left."""
    for left in path.parent.glob(f".{path.name}.{platform.node()}-*.part"):
        number = left.suffixes[-2].rpartition("-")[2]
        if number.isdigit() and not _runs(int(number)):
            removed(left)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks whether the process exists
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def removed(folder: Path) -> bool:
    """Remove a folder that is no longer needed; returns whether it is gone.

    A folder that cannot be removed (a file open on a network file system, a folder of another user)
    is reported and kept, without an error.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        print(f"{folder} could not be removed and is kept: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _install(temporary: Path, path: Path) -> None:
    """Give a folder its final name, and replace what may be there."""
    for file in temporary.rglob("*"):
        flush(file)
    flush(temporary)
    if path.exists():
        old = _beside(path, "old")
        path.rename(old)
        temporary.rename(path)
        removed(old)
    else:
        temporary.rename(path)
    flush(path.parent)


class StagingDir:
    """A folder that is filled piece by piece, whose finished pieces are kept when the process ends.

    They are collected in ``.<name>.work``, and the input and the result of each in
    ``.<name>.pieces``. One process at a time may own a workshop; processes that it starts may make
    pieces in it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.folder = path.with_name(f".{path.name}.work")
        self._pieces = path.with_name(f".{path.name}.pieces")

    def piece(self, name: str, made_from: Any, make: Callable[[Path], Any]) -> Any:
        """The plain data that ``make(temporary)`` returns when it writes the file ``name``.

        ``make`` is not called if that file was finished before from the same ``made_from``.
        """
        target, key = self.folder / name, stable_hash(made_from)
        note = self._pieces / f"{stable_hash(name)}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            there = read_json(note)
            if there["made_from"] == key and there["bytes"] == target.stat().st_size:
                return there["gave"]
        with atomic_write(target, durable=False) as temporary:
            gave = make(temporary)
            flush(temporary)  # before the note, which says that the file is complete
        # without a complete note, the piece is only made again
        size = target.stat().st_size
        write_json(note, {"made_from": key, "bytes": size, "gave": gave}, durable=False)
        return gave

    def finish(self, names: set[str]) -> None:
        """Give the folder its final name; it then holds the files ``names`` only."""
        for file in sorted(self.folder.rglob("*"), reverse=True):
            if file.is_dir():
                with contextlib.suppress(OSError):  # empty folders are removed
                    file.rmdir()
            elif str(file.relative_to(self.folder)) not in names:
                file.unlink()
        _install(self.folder, self.path)
        self.clear()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._pieces, ignore_errors=True)


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed; False where another process holds its lock. Raises
    UserError where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # NFS without its lock service, and some FUSE mounts
        raise UserError(
            f"{file.name}: this file system has no locks ({error.strerror}), which keep two "
            "processes from writing the same; give a run_dir and a data.dir on another one"
        ) from None
    return True


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock on the file ``path``; waits while another process holds it, which counts as
    progress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        pause = 0.01
        while not try_lock(handle):
            beat()
            time.sleep(pause)
            pause = min(0.25, 1.5 * pause)
        yield


def write_json(path: Path, content: Any, durable: bool = True) -> None:
    with atomic_write(path, durable) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a map of plain data with a digest of itself, so that damage is noticed."""
    plain = json.loads(json.dumps(content))
    write_json(path, {**plain, DIGEST: stable_hash(plain)})


def read_record(path: Path) -> dict[str, Any]:
    """Read what ``write_record`` wrote. Raises OSError if there is no file, ValueError if its
    content has changed."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a map of keys")  # noqa: TRY004  (it is damaged)
    # a file that was written before there were digests has none
    if content.pop(DIGEST, None) not in (None, stable_hash(content)):
        raise ValueError(f"{path} is damaged: its content is not what was written")
    return content


def json_line(content: Mapping[str, Any]) -> str:
    """A line of JSON Lines, without its line break, that ends with a checksum of the text before
    it, so that a damaged line is noticed even if it can be parsed."""
    text = json.dumps(content, ensure_ascii=False)[:-1]
    return f"{text}{CHECKSUM}{zlib.crc32(text.encode())}}}"


def read_json_line(text: str) -> dict[str, Any]:
    """Read what ``json_line`` wrote, without its checksum. Raises ValueError if the line has
    changed."""
    content, found, checksum = text.rstrip().rpartition(CHECKSUM)
    # a line that was written before there were checksums has none
    if found and checksum != f"{zlib.crc32(content.encode())}}}":
        raise ValueError("its content is not what was written")
    line = json.loads(content + "}" if found else text)
    if not isinstance(line, dict):
        raise ValueError("it does not hold a map of keys")  # noqa: TRY004  (it is damaged)
    return line


def stable_hash(content: Any, length: int = 16) -> str:
    """A hash of plain data that does not depend on the order of a map's keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def sha256(file: Path) -> str:
    """The hash of a file's whole content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def fingerprint(path: Path | str) -> str:
    """A value that identifies a file's content: size and modification time, or the hash of a small
    JSON file; for a URL the description of its file system. 'absent' where there is no file."""
    if isinstance(path, str):
        from fsspec.core import url_to_fs

        try:
            system, name = url_to_fs(path)
            return str(system.ukey(name))
        except Exception:  # every file system raises its own errors
            return "absent"
    try:
        stat = path.stat()
    except OSError:
        return "absent"
    if path.suffix == ".json" and stat.st_size < 1 << 24:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return f"{stat.st_size}:{stat.st_mtime_ns}"
