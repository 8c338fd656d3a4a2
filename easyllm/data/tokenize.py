"""Tokenizes texts into the token store, on as many processes as there are cores."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from easyllm.data.encode_chunk import encode_chunk
from easyllm.data.executors.pool import Pool
from easyllm.data.sources import io
from easyllm.data.sources.work_units import chunks, files, shown
from easyllm.data.store import token_files
from easyllm.data.store.fingerprint import encoding, made_from
from easyllm.data.store.manifest import Manifest, find, make, scratch, tokenizer_identity
from easyllm.data.tokenizers.encode import ChatCounts, load_tokenizer
from easyllm.data.tokenizers.portable import settle
from easyllm.data.tokenizers.select_backend import Engine, choose
from easyllm.errors import UserError
from easyllm.files import StagingDir, atomic_dir, stable_hash
from easyllm.paths import RunPaths, StorePaths
from easyllm.progress import progress
from easyllm.spec.roles import Template
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write


class _Inexact(Exception):
    """The engine gives other ids than Hugging Face's; the message shows where."""


@dataclasses.dataclass
class Encoded:
    """What became of all chunks."""

    entries: dict[str, list[dict[str, Any]]]
    """The manifest's entries, by source."""
    rejected: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    chats: ChatCounts = dataclasses.field(default_factory=ChatCounts)
    text_bytes: int = 0


def tokenize(run: RunSpec) -> dict[str, Any]:
    """Tokenize the run's sources into its store; returns the stage's metrics."""
    for name, reader in run.data.sources.items():
        files(name, reader)  # missing files are reported before any work
    place = RunPaths(run).store
    inputs = made_from(run, find(place, "tokenize"))
    return make(place, "tokenize", inputs, functools.partial(_fill, run, place))


def _fill(run: RunSpec, place: StorePaths, staging: StagingDir) -> Manifest:
    with scratch(place, "tokenize") as folder, run.data.engine.open(run, folder) as pool:
        identity = _tokenizer(run, place, staging)
        engine = choose(run.data.encoder, place.tokenizer, identity, RunPaths(run).models)
        began = time.perf_counter()
        _say(engine)
        try:
            encoded = _encode(run, place, staging, engine, identity, pool)
        except _Inexact as error:
            # the other engine does not take the pieces that this one wrote
            engine = engine.refused(str(error))
            _say(engine)
            encoded = _encode(run, place, staging, engine, identity, pool)
    _check_sources(encoded)
    _say_arguments(encoded.chats.arguments)
    if encoded.rejected:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in encoded.rejected)
        (staging.folder / "rejected.jsonl").write_text("".join(lines), "utf-8")
    return _manifest(run, engine, identity, encoded, time.perf_counter() - began)


def _check_sources(encoded: Encoded) -> None:
    for name, entries in encoded.entries.items():
        if not entries:
            bad = [record for record in encoded.rejected if record["source"] == name]
            why = f"all its records were rejected:\n{shown(bad)}\n" if bad else "it is empty; "
            raise UserError(
                f"data.sources.{name} holds no document: {why}give another path, or remove the "
                f"source with ~data.sources.{name}"
            )


def _manifest(
    run: RunSpec, engine: Engine, identity: str, encoded: Encoded, seconds: float
) -> Manifest:
    sources = {
        name: {
            "dataset": f"{name}_{run.data.tokenizer.label(run)}",
            "weight": run.data.sources[name].weight,
            **token_files.totals(entries),
        }
        for name, entries in encoded.entries.items()
    }
    counts = {
        key: sum(source[key] for source in sources.values())
        for key in ("documents", "tokens", "trained_tokens", "bytes")
    }
    chats = dataclasses.asdict(encoded.chats)
    return {
        "tokenizer": identity,
        "template": stable_hash(write(run.data.template)),
        "encoding": encoding(run),
        "vocab_size": engine.vocab_size,
        "eos_id": engine.eos_id,
        "pad_id": engine.pad_id,
        "sources": sources,
        "rejected": len(encoded.rejected),
        "chats": chats,
        "metrics": {
            **counts,
            "conversations": chats["conversations"],
            "unrolled_conversations": chats["unrolled"],
            "repeated_tokens": chats["repeated_tokens"],
            "rejected": len(encoded.rejected),
            "text_bytes": encoded.text_bytes,
            "vocab_size": engine.vocab_size,
            "encoder": engine.label,
            "encoders_rejected": engine.rejected,
            "tokens_per_second": round(counts["tokens"] / seconds, 1),
            "mb_per_second": round(encoded.text_bytes / seconds / 1e6, 3),
        },
    }


def _say(engine: Engine) -> None:
    for label, why in engine.rejected.items():
        print(f"{label} is not used: {why}", file=sys.stderr)
    print(f"texts are encoded by {engine.label}", file=sys.stderr, flush=True)


def _say_arguments(answers: dict[str, int]) -> None:
    """Report the template arguments where answers differ in them: serving needs the same ones."""
    if len(answers) > 1:
        counts = ", ".join(f"{count:,} with {arguments}" for arguments, count in answers.items())
        print(
            f"answers by the arguments of the chat template: {counts}; give "
            "data.template.arguments=<those of the answers that you want> to serve the model",
            file=sys.stderr,
        )


def _encode(
    run: RunSpec, place: StorePaths, staging: StagingDir, engine: Engine, identity: str, pool: Pool
) -> Encoded:
    """Encode all chunks. Raises _Inexact, and UserError for too many bad records."""
    found = Encoded({name: [] for name in sorted(run.data.sources)})
    total = sum(io.size(file) for n, r in run.data.sources.items() for file in files(n, r))
    work = functools.partial(
        encode_chunk, engine, place.tokenizer, identity, run.data.template, staging,
        run.data.compression,
    )  # fmt: skip
    with progress("tokenize", None if run.data.max_documents else total, "B") as bar:
        for result in pool.map(work, chunks(run), run.data.workers):
            if result.inexact:
                raise _Inexact(result.inexact)
            if result.entry:
                found.entries[result.source].append(result.entry)
            found.rejected += result.rejected
            if len(found.rejected) > run.data.max_bad_records:
                raise _too_many(found.rejected, run.data.max_bad_records)
            found.chats.merge(ChatCounts(**result.chats))
            found.text_bytes += result.text_bytes
            bar.update(result.text_bytes)
    return found


def _tokenizer(run: RunSpec, place: StorePaths, staging: StagingDir) -> str:
    """Make the store's tokenizer, unless a killed process made it; returns its identity."""

    def make(note: Path) -> str:
        with atomic_dir(place.tokenizer) as temporary:
            run.data.tokenizer.make(run, temporary)
            settle(temporary)
            template = run.data.template
            template.prepare(temporary)
            own = type(template).chat_template is not Template.chat_template
            # loading takes a second, so only where a template may give a chat template
            chat_template = template.chat_template(load_tokenizer(temporary)) if own else None
            if chat_template is not None:
                # so that the exported tokenizer has the template that training used
                (temporary / "chat_template.jinja").write_text(chat_template, "utf-8")
        note.touch()
        return tokenizer_identity(place.tokenizer)

    inputs = made_from(run, None)
    identity: str = staging.piece("tokenizer", inputs, make)
    if identity != tokenizer_identity(place.tokenizer):
        (staging.folder / "tokenizer").unlink()
        identity = staging.piece("tokenizer", inputs, make)
    return identity


def _too_many(rejected: list[dict[str, Any]], allowed: int) -> UserError:
    return UserError(
        f"more than data.max_bad_records={allowed} records cannot be used; fix the data, or "
        f"give a larger data.max_bad_records. The first:\n{shown(rejected)}"
    )
