"""``stages=[inspect]``: numbers, rows as text, the terminal and the page."""

from __future__ import annotations

import io
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console

from easyllm.data.dataset.rows import open_rows
from easyllm.data.inspect.inspection import Inspection, ShownRow, Span, inspect
from easyllm.data.inspect.report import page, show
from easyllm.data.store.token_cache import open_cache
from easyllm.errors import UserError
from easyllm.paths import RunPaths
from easyllm.stages import load
from tests.data.conftest import Spec, dialogue, story, work


@pytest.fixture(scope="module")
def found(store: Path, spec: Spec) -> Inspection:
    data = {"packing": "best_fit", "seq_len": 256}
    return inspect(spec(store, data=data, training={"evaluate": {"fraction": 0.1}}))


def test_numbers_are_those_of_the_store(found: Inspection, store: Path, spec: Spec) -> None:
    metrics = found.metrics
    rows = open_rows(spec(store, data={"packing": "best_fit", "seq_len": 256},
                          training={"evaluate": {"fraction": 0.1}}))  # fmt: skip
    assert metrics["documents"] == 100 == sum(count for _, _, count in found.histogram)
    assert metrics["heldout_documents"] == 10
    assert metrics["rows"] == rows.per_epoch
    filled = sum(rows.filled(index) for index in range(rows.per_epoch))
    assert metrics["fill"] == pytest.approx(filled / (rows.per_epoch * 256), abs=1e-6)
    fills = {name: packed["fill"] for name, packed in metrics["packings"].items()}
    assert 0 < fills["none"] < fills["best_fit"] <= fills["concat"] <= 1
    assert (
        metrics["sources"]["dialogues"]["trained_tokens"]
        < metrics["sources"]["dialogues"]["tokens"]
    )
    assert found.longer_than_a_row == 0
    for (_, high, _), (low, _, _) in zip(found.histogram, found.histogram[1:], strict=False):
        assert low == high + 1


def test_what_is_trained_is_the_answers_and_the_texts(store: Path, spec: Spec) -> None:
    """Decoded and compared with the sources, but for first tokens, which nothing predicts."""
    run = spec(store, data={"packing": "none", "seq_len": 512})
    stories = {story(number) for number in range(60)}
    answers = {tuple(dialogue(number).split("\t")[1::2]) for number in range(40)}
    shown = inspect(run).rows
    assert len(shown) == 8
    for row in shown:
        (spans,) = row.documents
        text = "".join(span.text for span in spans)
        trained = [span.text.replace("<|endoftext|>", "") for span in spans if span.trained]
        if text.removesuffix("<|endoftext|>") in stories:
            assert text.endswith(trained[0] + "<|endoftext|>") and len(trained) == 1
        else:
            assert tuple(part.strip() for part in trained) in answers


def test_characters_are_not_cut_where_training_begins(spec: Spec, tmp_path: Path) -> None:
    lines = [f"汉字\t回答{'的' * n}" for n in range(1, 30)]
    (tmp_path / "zh.tsv").write_text("\n".join(lines), "utf-8")
    (tmp_path / "zh.txt").write_text("\n\n".join("字汉" * n for n in range(1, 30)), "utf-8")
    sources = {"dialogues": {"path": str(tmp_path / "zh.tsv")},
               "stories": {"path": str(tmp_path / "zh.txt")}}  # fmt: skip
    run = spec(tmp_path, data={"sources": sources, "packing": "best_fit"}, stages=["tokenize"])
    work(run, "tokenize")
    texts = ["".join(span.text for span in spans) for row in inspect(run).rows
             for spans in row.documents]  # fmt: skip
    whole = [text for text in texts if text.endswith("<|endoftext|>") and text[0] in "字<"]
    assert whole and not any("\ufffd" in text for text in whole)


def test_the_share_of_a_source_is_that_of_the_tokens_of_an_epoch(store: Path, spec: Spec) -> None:
    weights = {"stories": {"weight": 3.0}, "dialogues": {"weight": 0.5}}
    data = {"packing": "best_fit", "seq_len": 256, "sources": weights}
    run = spec(store, data=data, training={"evaluate": {"fraction": 0.1}})
    found, rows = inspect(run), open_rows(run)
    cache, _ = open_cache(run)
    firsts = {name: int(cache.offsets[first]) for name, (first, _) in cache.sources.items()}
    ends = {name: int(cache.offsets[end]) for name, (_, end) in cache.sources.items()}
    read = dict.fromkeys(firsts, 0)
    for number in (0, 1):  # of a weight of a half, two epochs hold every document once
        plan = rows.plan(number)
        for name in read:
            mine = (plan.starts >= firsts[name]) & (plan.starts < ends[name])
            read[name] += int(plan.lengths[mine].sum())
    shares = {name: source["share"] for name, source in found.metrics["sources"].items()}
    assert shares == pytest.approx({n: read[n] / sum(read.values()) for n in read}, abs=1e-6)
    shown = terminal(found, colours=False)
    assert "share of an" in shown, "the heading, over lines"
    for share in shares.values():
        assert f"{share:.2%}" in shown and f"<td>{share:.2%}</td>" in page(found)


def terminal(found: Inspection, colours: bool) -> str:
    out = io.StringIO()
    show(found, Console(file=out, force_terminal=colours, color_system="standard", width=100))
    return out.getvalue()


def test_the_terminal_tells_trained_from_untrained(found: Inspection) -> None:
    asked = Span("asked [red]\x1b[2J", trained=False)
    spans = [[asked, Span("answered", trained=True)]]
    few = Inspection(**{**vars(found), "rows": [ShownRow(5, spans, 7)]})
    coloured, plain = (terminal(few, colours) for colours in (True, False))
    assert "\x1b[32manswered" in coloured and "\x1b[2masked [red]␛[2J" in coloured
    for text in ("stories", "best_fit", "Row 5: 1 document, 7 padded"):
        assert text in plain
    out = io.StringIO()
    show(few, Console(file=out, force_terminal=False, color_system=None, width=100))
    assert "⟦asked [red]␛[2J⟧answered" in out.getvalue()


def test_the_page_is_escaped_and_needs_nothing(found: Inspection) -> None:
    spans = [[Span("<script>alert('&')</script>", trained=True)]]
    made = page(Inspection(**{**vars(found), "title": "<b>", "rows": [ShownRow(0, spans, 0)]}))
    assert "<script" not in made and "<b>" not in made
    assert "<script>alert('&')</script>" in unescape(made)
    assert "http" not in made and "src=" not in made
    assert '<span class="trained">' in made


def test_the_stage_leaves_its_page(store: Path, spec: Spec) -> None:
    run = spec(store, stages=["inspect"], data={"seq_len": 48})
    stage = load("inspect")
    stage.require(run)
    (metrics,) = work(run, "inspect")
    assert metrics["page"] == str(RunPaths(run).inspection)
    assert "dialogues" in RunPaths(run).inspection.read_text("utf-8")
    assert metrics["documents"] == 100 and metrics["packing"] == "concat"


def test_without_a_store_it_says_what_to_run(spec: Spec, tmp_path: Path) -> None:
    run = spec(tmp_path, stages=["inspect"])
    with pytest.raises(UserError, match="add tokenize to stages"):
        load("inspect").require(run)
