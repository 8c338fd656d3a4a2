"""Wrong specs by the thousand, each given to the command in this process, up to where a stage
would be started."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from easyllm import __main__ as command
from easyllm.cli import composition, hydra_app
from easyllm.spec.problems import Problem
from tests.cli.drawing import CONFIG, Draw

SECONDS = 10
"""CPU seconds after which a spec counts as hanging."""
FOREIGN = re.compile(
    r"omegaconf|Hydra(?! setting)|--config-name|default list|defaults list|Interpolation|"
    r"full_key|object_type|in struct|force-add|ListConfig|DictConfig|expecting \{|"
    r"(mismatched|extraneous) input|"
    r"token recognition|viable alternative|Traceback|\bargparse\b|usage:",
)
"""Words of Hydra, OmegaConf, ANTLR and argparse."""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@dataclasses.dataclass
class Outcome:
    words: list[str]
    status: Any
    """The exit status, or what was raised."""
    message: str
    problems: list[Problem]
    seconds: float
    left: bool = False
    """Whether a refused spec left something behind."""

    @property
    def fault(self) -> str:
        """What is wrong with it; empty where nothing is."""
        if isinstance(self.status, Hangs):
            return "hang"
        if isinstance(self.status, BaseException) or self.status not in (0, 2):
            return "traceback"
        if any(not (p.key.strip() and p.remedy.strip()) for p in self.problems):
            return "bare"
        if FOREIGN.search(_without_values(self)) or CONTROL.search(self.message):
            return "foreign"
        return "leftover" if self.left else ""


def _without_values(outcome: Outcome) -> str:
    """What is said, the user's own words apart."""
    return " ".join(f"{problem.message} {problem.remedy}" for problem in outcome.problems)


class Hangs(BaseException):
    """A spec that took too long."""


def prepare(folder: Path) -> None:
    """Files that specs may name, in a folder that becomes the current one."""
    (folder / "notes.txt").write_text("A note.\n\nAnother.\n")
    (folder / "chat.jsonl").write_text('{"messages": []}\n')
    (folder / "number.yaml").write_text("5\n")
    for name, text in (
        ("own", json.dumps(CONFIG)),
        ("broken", "{" * 3000), ("odd", '{"model_type": "llama", "hidden_size": [1]}'),
    ):  # fmt: skip
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)


def specs(draw: Draw, folder: Path, count: int) -> Iterator[list[str]]:
    """Command lines, and those of a run.yaml and of a recipe that are written first."""
    for number in range(count):
        pick = draw.random.random()
        if pick < 0.55:
            yield draw.command_line()
        elif pick < 0.97:
            (folder / "run.yaml").write_bytes(draw.file().encode("utf-8", "surrogatepass"))
            more = [draw.word()] if draw.random.random() < 0.3 else []
            yield ["run.yaml", *more]
        else:
            own = folder / "mine" / "recipe" / f"own{number}.yaml"
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(draw.recipe())
            yield [str(own), "stages=[]"]
            own.unlink()


def tried(words: list[str], folder: Path) -> Outcome:
    """What the command makes of its words, up to where stages would be started."""
    problems: list[Problem] = []
    refuse = command.refuse

    def refused(found: Any, origin: Any) -> int:
        problems.extend(found)
        return refuse(found, origin)

    def hang(number: int, frame: Any) -> None:
        raise Hangs

    before, begun = sorted(folder.iterdir()), time.monotonic()
    out, err = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGVTALRM, hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(command, "refuse", refused),
            mock.patch.object(hydra_app, "inspect", lambda *asked: 0),
            mock.patch("easyllm.dispatcher.run.run_on_machines", lambda run, file: 0),
        ):
            status: Any = command.main(words)
    except (Exception, Hangs, SystemExit) as error:
        status = error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    took = time.monotonic() - begun
    left = status == 2 and sorted(folder.iterdir()) != before
    return Outcome(words, status, err.getvalue(), problems, took, left)


def run(count: int, seed: int, folder: Path) -> tuple[dict[str, Any], list[Outcome]]:
    """Try ``count`` specs in ``folder``, the current one; what they came to, and the faults."""
    prepare(folder)
    composition.composed_by_hydra.cache_clear()
    faults: list[Outcome] = []
    counts: Counter[str] = Counter()
    begun, slowest = time.monotonic(), 0.0
    for words in specs(Draw(seed), folder, count):
        outcome = tried(words, folder)
        slowest = max(slowest, outcome.seconds)
        counts["refused" if outcome.status == 2 else "taken"] += 1
        if outcome.fault:
            counts[outcome.fault] += 1
            faults.append(outcome)
    found = {
        "tried": count, "refused": counts["refused"], "tracebacks": counts["traceback"],
        "hangs": counts["hang"], "without_key_or_remedy": counts["bare"],
        "foreign_words": counts["foreign"], "leftovers": counts["leftover"],
        "slowest_s": round(slowest, 2), "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip
    return found, faults


if __name__ == "__main__":  # python -m tests.cli.fuzz COUNT SEED, to look at what is found
    import os
    import tempfile
    import traceback

    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        summary, wrong = run(int(sys.argv[1]), int(sys.argv[2]), Path(place))
        os.chdir("/")
    shown: Counter[str] = Counter()
    for outcome in wrong:
        kind = outcome.fault + repr(outcome.status)[:60] + outcome.message[-60:]
        shown[kind] += 1
        if shown[kind] <= 2:
            print("=====", outcome.fault, ascii(outcome.words)[:300], repr(outcome.status)[:200])
            if isinstance(outcome.status, BaseException):
                print("".join(traceback.format_exception(outcome.status)[-5:]))
            else:
                print(ascii(outcome.message)[:600], outcome.problems[:2])
    print(json.dumps(summary))
