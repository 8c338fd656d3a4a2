"""Writes ``decoder_types.md``: ``python docs/decoder_types.py REPORT``, where REPORT is the JUnit
file of the tests that train every type (``make models``)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import transformers

from easyllm.models.decoders.describe import UNTRAINED, known_types
from easyllm.models.decoders.family import Decoder
from tests.models.decoders import small
from tests.training.decoders import ROUTED

PAGE = Path(__file__).parent / "decoder_types.md"
TEXT = """\
# Types of decoders

Written by `make models` with transformers {version}: {count} types pass.

For each type a small model was trained for three steps in float32 on packed rows, by a pipeline of
two stages and by ZeRO 1 on two ranks. Loss, gradient norm and weights are those of transformers'
plain model, which computes each document by itself (1e-5; 1e-4 for `gemma3n_text`). The names and
values of saved files are those that transformers writes (`tests/training/decoders.py`,
`tests/models/test_decoders.py`).

`documents` says how documents in one row are kept apart: *by document* in the attention alone,
*mask* by transformers' mask, *whole layers* by computing each document by itself. Types with
`eager` need `model.attention=eager`.

| type | pipeline | documents | loss over routers |
| --- | --- | --- | --- |
{rows}

These are refused:

| type | reason |
| --- | --- |
{refused}
"""


def main(report: Path) -> int:
    cases = ElementTree.parse(report).getroot().iter("testcase")
    passed = {
        match[1] for case in cases
        if (match := re.search(r"\[(\w+)\]$", case.get("name", ""))) and not list(case)
    }  # fmt: skip
    if missing := sorted(set(known_types()) - passed):
        print(f"did not pass: {', '.join(missing)}", file=sys.stderr)
        return 1
    rows = "\n".join(row(name) for name in sorted(passed & set(known_types())))
    refused = "\n".join(f"| `{name}` | {why} |" for name, why in sorted(UNTRAINED.items()))
    text = TEXT.format(
        version=transformers.__version__, count=len(known_types()), rows=rows, refused=refused
    )
    PAGE.write_text(text, "utf-8")
    return 0


def row(name: str) -> str:
    config = small(name)
    outline = Decoder(type=name).outline(config)
    kept = "by document" if outline.own_attention else "whole layers" if outline.leaks else "mask"
    cells = [
        f"`{name}`",
        f"no: {outline.uncut}" if outline.uncut else "yes",
        f"{kept}, `eager`" if outline.eager_only else kept,
        "yes" if name in ROUTED else "",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
