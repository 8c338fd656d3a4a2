"""What determines the tokens of a run, without making them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easyllm.files import fingerprint
from easyllm.spec.roles import Reader
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write


def tokens_identity(run: RunSpec) -> dict[str, Any]:
    """Plain data that differs whenever the tokens do: settings, and the files behind them.

    A source's weight is left out: it counts in training.
    """
    data = run.data
    sources = {}
    for name, reader in data.sources.items():
        settings = {key: value for key, value in write(reader).items() if key != "weight"}
        sources[name] = [settings, _files(reader)]
    return {
        "sources": sources,
        "tokenizer": [
            write(data.tokenizer),
            data.tokenizer.label(run),
            _fingerprints(data.tokenizer.files(run)),
        ],
        "template": write(data.template),
        "compression": data.compression,
        "rows_per_file": data.rows_per_file,
        "limit": data.limit,
    }


def _files(reader: Reader) -> Any:
    try:
        return _fingerprints(reader.files())
    except OSError:
        return "absent"  # a store that was made before can be used without its texts


def _fingerprints(files: Sequence[Path | str]) -> list[tuple[str, str]]:
    return [(str(file), fingerprint(file)) for file in files]
