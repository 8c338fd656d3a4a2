"""Identifies the tokens of a run by what determines them, without making them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easyllm.data.store.manifest import Manifest, differences
from easyllm.errors import UserError
from easyllm.files import fingerprint
from easyllm.paths import StorePaths
from easyllm.spec.roles import Reader
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write


def tokens_identity(run: RunSpec) -> dict[str, Any]:
    """Plain data that differs whenever the tokens do: settings, and the files behind them.

    It is made without asking the hub, so that a store can be found before a model is fetched.
    A source's weight is left out, because it only matters in training.
    """
    data = run.data
    sources = {}
    for name, reader in data.sources.items():
        settings = {key: value for key, value in write(reader).items() if key != "weight"}
        sources[name] = {"reader": settings, "files": _files(reader)}
    return {
        "sources": sources,
        **_encoding(run),
        "compression": data.compression,
        "rows_per_file": data.rows_per_file,
        "max_documents": data.max_documents,
    }


def made_from(run: RunSpec, there: Manifest | None) -> dict[str, Any]:
    """``tokens_identity``, and the content of a tokenizer from the hub, where it is available.

    Where the manifest ``there`` or this machine does not know that content, the two count as the
    same: they agree in all else, and a store may be older than such a hash.
    """
    made = {**tokens_identity(run), **encoding(run)}
    if there is not None:
        known = there["made_from"].get("tokenizer", {}).get("content")
        if not (known and made["tokenizer"].get("content")):
            made["tokenizer"] = _with(made["tokenizer"], content=known)
    return made


def encoding(run: RunSpec) -> dict[str, Any]:
    """What turns the texts into tokens: the tokenizer and the template."""
    made = _encoding(run)
    return {**made, "tokenizer": _with(made["tokenizer"], content=run.data.tokenizer.content(run))}


def _with(tokenizer: dict[str, Any], content: str | None) -> dict[str, Any]:
    rest = {key: value for key, value in tokenizer.items() if key != "content"}
    return {**rest, "content": content} if content else rest


def _encoding(run: RunSpec) -> dict[str, Any]:
    tokenizer = run.data.tokenizer
    made = {
        "name": tokenizer.label(run),
        "settings": write(tokenizer),
        "files": _fingerprints(tokenizer.files(run)),
    }
    if rule := tokenizer.rule(run):
        made["rule"] = rule
    return {"tokenizer": made, "template": write(run.data.template)}


def check_encoding(run: RunSpec, store: StorePaths, manifest: Manifest) -> None:
    """Raises UserError where a store was made with another tokenizer or template than ``run``'s.

    Tokenizers are distinguished by name and, where files of both are known, by their content,
    so that one that moved is still the same. A run that names no tokenizer takes the store's.
    """
    there, here = manifest["encoding"], encoding(run)
    if not here["tokenizer"]["name"]:
        return
    mine, theirs = (_contents(side["tokenizer"]["files"]) for side in (here, there))
    both = mine.keys() & theirs.keys()
    names = there["tokenizer"]["name"], here["tokenizer"]["name"]
    same = names[0] == names[1] or bool(both)
    lines = []
    if not same or any(mine[name] != theirs[name] for name in both):
        lines.append(f"  tokenizer: {names[0]} in the store, {names[1]} in this run")
        lines += [
            f"  {name}: {theirs[name]} in the store, {mine[name]} in this run"
            for name in sorted(both)
            if mine[name] != theirs[name]
        ]
        lines.append(f"  fingerprint of the store's tokenizer: {manifest['tokenizer']}")
    contents = [side["tokenizer"].get("content") for side in (there, here)]
    if same and all(contents) and contents[0] != contents[1]:
        lines.append(
            f"  tokenizer: {names[1]} has another content in the store than at "
            f"model.revision={run.model.revision}"
        )
    rules = [side["tokenizer"].get("rule") for side in (there, here)]
    if same and rules[0] != rules[1] and here["tokenizer"]["files"]:
        lines.append(f"  tokenizer: by the rule {rules[0]} in the store, {rules[1]} in this run")
    if there["template"] != here["template"]:
        lines.append(differences(there["template"], here["template"], "template"))
    if lines:
        found = "\n".join(lines)
        raise UserError(
            f"data.dir={store.root} was made with another tokenizer or template:\n{found}\n"
            "give the store's, or another data.dir"
        )


def _contents(files: list[Any]) -> dict[str, str]:
    """Hashes of the files whose content was read, by name."""
    return {Path(file).name: mark for file, mark in files if mark.startswith("sha256:")}


def _files(reader: Reader) -> Any:
    try:
        return _fingerprints(reader.files())
    except OSError:
        return "absent"  # a store that was made before can be used without its texts


def _fingerprints(files: Sequence[Path | str]) -> list[tuple[str, str]]:
    return [(str(file), fingerprint(file)) for file in files]
