"""Texts to the token store, on as many processes as there are cores."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from easyllm.data.executors.pool import Pool
from easyllm.data.sources import io
from easyllm.data.sources.legacy_store import TokenStore
from easyllm.data.sources.work_units import Chunk, chunks, files, shown
from easyllm.data.store import token_files
from easyllm.data.store.fingerprint import encoding, made_from
from easyllm.data.store.manifest import Manifest, find, make, scratch, tokenizer_identity
from easyllm.data.tokenizers.encode import ChatCounts, Vocabulary, encode, load_tokenizer
from easyllm.data.tokenizers.portable import settle
from easyllm.data.tokenizers.select_backend import Engine, choose, compared, load
from easyllm.errors import UserError
from easyllm.files import Workshop, atomic_dir, stable_hash
from easyllm.paths import RunPaths, StorePaths
from easyllm.progress import progress
from easyllm.spec.roles import Record, Template
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write

Result = tuple[str, int, dict[str, Any] | None, list[dict[str, Any]], dict[str, Any], str | None]
"""Of a chunk: source, bytes of text, the manifest's entry, what was rejected, counts of its
conversations, and where the engine's ids are not Hugging Face's, in which case there is no
entry."""


class _Inexact(Exception):
    """The engine gives other ids than Hugging Face's, and where."""


def tokenize(run: RunSpec) -> dict[str, Any]:
    """Tokenize the run's sources into its store; returns the stage's metrics."""
    for name, reader in run.data.sources.items():
        files(name, reader)  # said before any work
    place = RunPaths(run).store
    told = made_from(run, find(place, "tokenize"))
    return make(place, "tokenize", told, functools.partial(_fill, run, place))


def _fill(run: RunSpec, place: StorePaths, workshop: Workshop) -> Manifest:
    total = sum(io.size(file) for n, r in run.data.sources.items() for file in files(n, r))
    with scratch(place, "tokenize") as folder, run.data.engine.open(run, folder) as pool:
        identity = _tokenizer(run, place, workshop)
        engine = choose(run.data.encoder, place.tokenizer, identity, RunPaths(run).models)
        began = time.perf_counter()
        _say(engine)
        try:
            made, rejected, chats, text_bytes = _encode(
                run, place, workshop, engine, identity, pool, total
            )
        except _Inexact as error:
            # no piece that it wrote is taken by another engine
            engine = engine.refused(str(error))
            _say(engine)
            made, rejected, chats, text_bytes = _encode(
                run, place, workshop, engine, identity, pool, total
            )
    for name, entries in made.items():
        if not entries:
            bad = [record for record in rejected if record["source"] == name]
            why = f"all its records were rejected:\n{shown(bad)}\n" if bad else "it is empty; "
            raise UserError(
                f"data.sources.{name} holds no document: {why}give another path, or remove the "
                f"source with ~data.sources.{name}"
            )
    _say_arguments(chats["arguments"])
    if rejected:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in rejected)
        (workshop.folder / "rejected.jsonl").write_text(text, "utf-8")
    sources = {
        name: {
            "dataset": f"{name}_{run.data.tokenizer.label(run)}",
            "weight": run.data.sources[name].weight,
            **token_files.totals(entries),
        }
        for name, entries in made.items()
    }
    seconds = time.perf_counter() - began
    counts = {
        key: sum(source[key] for source in sources.values())
        for key in ("documents", "tokens", "trained_tokens", "bytes")
    }
    return {
        "tokenizer": identity,
        "template": stable_hash(write(run.data.template)),
        "encoding": encoding(run),
        "vocab_size": engine.vocab_size,
        "eos_id": engine.eos_id,
        "pad_id": engine.pad_id,
        "sources": sources,
        "rejected": len(rejected),
        "chats": chats,
        "metrics": {
            **counts,
            "conversations": chats["conversations"],
            "unrolled_conversations": chats["unrolled"],
            "repeated_tokens": chats["repeated_tokens"],
            "rejected": len(rejected),
            "text_bytes": text_bytes,
            "vocab_size": engine.vocab_size,
            "encoder": engine.label,
            "encoders_passed_over": engine.passed_over,
            "tokens_per_second": round(counts["tokens"] / seconds, 1),
            "mb_per_second": round(text_bytes / seconds / 1e6, 3),
        },
    }


def _say(engine: Engine) -> None:
    for label, why in engine.passed_over.items():
        print(f"{label} is not used: {why}", file=sys.stderr)
    print(f"texts are encoded by {engine.label}", file=sys.stderr, flush=True)


def _say_arguments(answers: dict[str, int]) -> None:
    """Answers that were asked for in different ways must be so when the model is served."""
    if len(answers) > 1:
        counts = ", ".join(f"{count:,} with {arguments}" for arguments, count in answers.items())
        print(
            f"answers by the arguments of the chat template: {counts}; serve the model with "
            "those of the answers that you want, by data.template.arguments",
            file=sys.stderr,
        )


def _encode(
    run: RunSpec,
    place: StorePaths,
    workshop: Workshop,
    engine: Engine,
    identity: str,
    pool: Pool,
    total: int,
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]], dict[str, Any], int]:
    """The manifest's entries by source, what was rejected, counts of conversations, bytes of
    text. Raises _Inexact."""
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in sorted(run.data.sources)}
    rejected: list[dict[str, Any]] = []
    chats = ChatCounts()
    text_bytes = 0
    work = functools.partial(
        _encode_chunk, engine, place.tokenizer, identity, run.data.template, workshop,
        run.data.compression,
    )  # fmt: skip
    with progress("tokenize", None if run.data.max_documents else total, "B") as bar:
        for source, size, entry, bad, counts, why in pool.map(work, chunks(run), run.data.workers):
            if why:
                raise _Inexact(why)
            if entry:
                made[source].append(entry)
            rejected += bad
            if len(rejected) > run.data.max_bad_records:
                raise _too_many(rejected, run.data.max_bad_records)
            chats.merge(ChatCounts(**counts))
            text_bytes += size
            bar.update(size)
    return made, rejected, dataclasses.asdict(chats), text_bytes


def _tokenizer(run: RunSpec, place: StorePaths, workshop: Workshop) -> str:
    """Make the store's tokenizer, unless a killed process did; its identity."""

    def make(note: Path) -> str:
        with atomic_dir(place.tokenizer) as aside:
            run.data.tokenizer.make(run, aside)
            settle(aside)
            template = run.data.template
            template.prepare(aside)
            own = type(template).chat_template is not Template.chat_template
            # loading takes a second, so only where a template may have something to say
            chat_template = template.chat_template(load_tokenizer(aside)) if own else None
            if chat_template is not None:
                # so that the exported tokenizer serves with what training used
                (aside / "chat_template.jinja").write_text(chat_template, "utf-8")
        note.touch()
        return tokenizer_identity(place.tokenizer)

    told = made_from(run, None)
    identity: str = workshop.piece("tokenizer", told, make)
    if identity != tokenizer_identity(place.tokenizer):
        (workshop.folder / "tokenizer").unlink()
        identity = workshop.piece("tokenizer", told, make)
    return identity


def _vocabulary(engine: Engine, tokenizer: Path, identity: str) -> Vocabulary:
    """A process loads an engine once; ``identity`` tells a tokenizer from its successor."""
    key = (engine.folder, engine.label, tokenizer, identity)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = load(engine, tokenizer)
    return _LOADED[key]


_LOADED: dict[Any, Vocabulary] = {}


def _encode_chunk(
    engine: Engine,
    tokenizer: Path,
    identity: str,
    template: Template,
    workshop: Workshop,
    compression: str,
    chunk: Chunk,
) -> Result:
    """Write a chunk's parquet file, unless a killed process did."""

    def make(aside: Path) -> tuple[Any, ...]:  # a Result without its source
        if isinstance(chunk.reader, TokenStore):
            entry = _adopt(engine, chunk.reader, chunk, aside, compression)
            return entry["bytes"], entry, [], {}, None
        vocabulary = _vocabulary(engine, tokenizer, identity)
        records = chunk.read()
        why = None
        if chunk.first and not engine.is_reference:
            documents = (r.document for r in records if isinstance(r, Record))
            texts = (document for document in documents if isinstance(document, str))
            why = compared(engine, vocabulary.encode, texts)
        try:
            encoded = encode(vocabulary, template, [] if why else records)
        except UserError as error:
            raise UserError(f"{chunk.file}, {Path(chunk.path).name}: {error}") from None
        rejected = [
            {"source": chunk.source, "file": str(chunk.file), "line": r.line, "reason": r.reason}
            for r in encoded.rejected
        ]
        if encoded.shard is None:
            aside.touch()  # a piece is a file, an empty one where no document is left
            return 0, None, rejected, {}, why
        entry = token_files.save(aside, chunk.path, encoded.shard, compression)
        return encoded.text_bytes, entry, rejected, dataclasses.asdict(encoded.chats), None

    made_from = [identity, engine.label, write(template), compression, chunk.identity()]
    return chunk.source, *workshop.piece(chunk.path, made_from, make)


def _adopt(
    engine: Engine, reader: TokenStore, chunk: Chunk, aside: Path, compression: str
) -> dict[str, Any]:
    """Write a file of tokens as one of the store's; its entry for the manifest."""
    assert isinstance(chunk.file, Path)
    ids = engine.pad_id, engine.eos_id, engine.vocab_size
    parts = reader.shards(chunk.file, *ids, chunk.limit)
    return token_files.save_groups(aside, chunk.path, parts, reader.masked(chunk.file), compression)


def _too_many(rejected: list[dict[str, Any]], allowed: int) -> UserError:
    return UserError(
        f"more than data.max_bad_records={allowed} records cannot be used; fix the data, or "
        f"give a larger data.max_bad_records. The first:\n{shown(rejected)}"
    )
