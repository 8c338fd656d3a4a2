"""Two machines on one: network namespaces with addresses of their own, joined by a cable.

The second runs an sshd of its own. They share all files, except that the second may have an
empty folder of its own laid over one of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import PATIENCE, wait_for

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def lacking() -> str:
    """Why two machines cannot be made here; empty where they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "two machines need Linux's network namespaces, made as root"
    programs = {"ip": shutil.which("ip"), "sshd": SSHD, "ssh": shutil.which("ssh")}
    if absent := [name for name, found in programs.items() if not found]:
        return f"two machines need {', '.join(absent)}"
    name = f"el{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"no network namespaces: {made.stderr.strip()}" if made.returncode else ""


class Machines:
    """Namespaces ``first`` and ``second`` with the addresses ``addresses``."""

    def __init__(self, folder: Path):
        self.folder = folder
        mark = f"el{os.getpid()}"
        self.first, self.second = f"{mark}a", f"{mark}b"
        self.cables = (f"{mark}x", f"{mark}y")
        self.addresses = ("10.123.7.1", "10.123.7.2")
        self.sshd: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        first, second = self.cables
        for name in (self.first, self.second):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", first, "netns", self.first, "type", "veth",
           "peer", "name", second, "netns", self.second)  # fmt: skip
        for name, cable, address in zip(
            (self.first, self.second), self.cables, self.addresses, strict=True
        ):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
        for key in ("key", "host"):
            made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)]
            subprocess.run(made, check=True)
        # the user's own settings stay out of it
        (self.folder / "ssh_config").write_text(
            f"IdentityFile {self.folder}/key\nBatchMode yes\nStrictHostKeyChecking no\n"
            "UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)

    def on(self, name: str, *words: str) -> list[str]:
        """A command as run on a machine."""
        return ["ip", "netns", "exec", name, *words]

    def boot(self, own: Path | None = None) -> None:
        """Start the second machine; the folder ``own`` is empty there and its own."""
        ip("-n", self.second, "link", "set", self.cables[1], "up")
        command = [
            str(SSHD), "-D", "-e", "-f", "/dev/null", "-h", str(self.folder / "host"),
            "-o", f"AuthorizedKeysFile={self.folder}/key.pub", "-o", "StrictModes=no",
            "-o", "PidFile=none", "-o", "PermitRootLogin=yes",
            "-o", f"ListenAddress={self.addresses[1]}",
        ]  # fmt: skip
        if own is not None:
            script = 'mount -t tmpfs none "$0" && exec "$@"'
            command = ["unshare", "-m", "sh", "-c", script, str(own), *command]
        with (self.folder / "sshd.log").open("wb") as log:
            self.sshd = subprocess.Popen(
                self.on(self.second, *command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(lambda: b"listening on" in (self.folder / "sshd.log").read_bytes())

    def cut(self) -> None:
        """Cut the power of the second machine: nothing it sends arrives any more."""
        ip("-n", self.second, "link", "set", self.cables[1], "down")
        self._kill(self.second)
        if self.sshd is not None:
            self.sshd.wait(timeout=PATIENCE)

    def processes(self, name: str) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def _kill(self, name: str) -> None:
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def remove(self) -> None:
        for name in (self.first, self.second):
            self._kill(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        if self.sshd is not None:
            self.sshd.wait(timeout=PATIENCE)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
