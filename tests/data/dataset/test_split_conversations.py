"""Conversations longer than a row: cut where a turn begins, cut anywhere, or left out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyllm.data.chat.formats import Baichuan, ChatML, Llama2
from easyllm.data.chat.templates import Plain
from easyllm.data.dataset.rows import Rows, open_rows
from easyllm.data.inspect.inspection import inspect
from easyllm.data.store.shards import Int64
from easyllm.data.tokenizers.encode import encode, load_tokenizer
from easyllm.errors import UserError
from easyllm.smoke import shrink
from easyllm.spec.roles import Record, Template
from tests.data.conftest import vocabulary
from tests.data.made import shard, tokens_store
from tests.support import LLAMA, merged

BREAK = 1
"""A token that stands after each answer, as ChatML's line break does."""

TURN = st.tuples(st.integers(1, 12), st.integers(1, 12))
"""Tokens of a question and of its answer."""
CONVERSATIONS = st.lists(
    st.tuples(st.lists(TURN, min_size=1, max_size=8), st.integers(0, 6)), min_size=1, max_size=12
)
"""Turns, and the tokens of a last question that has no answer."""


def laid(
    drawn: list[tuple[list[tuple[int, int]], int]], breaks: int
) -> tuple[list[list[int]], list[list[bool]], list[list[int]]]:
    """Token ids, no two alike but for breaks, their masks, and where turns begin."""
    documents, masks, turns = [], [], []
    number = BREAK + 1
    for pairs, last in drawn:
        ids: list[int] = []
        mask: list[bool] = []
        begins = []
        for question, answer in [*pairs, (last, 0)]:
            begins.append(len(ids))
            ids += range(number, number + question + answer)
            mask += [False] * question + [True] * answer
            number += question + answer
            if answer:
                ids += [BREAK] * breaks
                mask += [False] * breaks
        documents.append(ids)
        masks.append(mask)
        turns.append([begin for begin in begins if begin < len(ids)] + [len(ids)])
    return documents, masks, turns


def read(rows: Rows) -> list[Int64]:
    """The pieces of an epoch's documents, by where positions restart, without padding."""
    found = []
    for index in range(rows.per_epoch):
        row, filled = rows.sample(index), rows.filled(index)
        found += np.split(row.input_ids[:filled], np.flatnonzero(row.positions[:filled] == 0)[1:])
    return found


@pytest.mark.parametrize("packing", ["best_fit", "none", "concat"])
@pytest.mark.parametrize("what", ["cut_at_turns", "cut", "drop"])
@settings(max_examples=12)
@given(drawn=CONVERSATIONS, breaks=st.integers(0, 2), seq_len=st.integers(3, 40))
def test_no_token_is_lost_and_turns_stay_whole(
    tmp_path_factory: pytest.TempPathFactory,
    what: str,
    packing: str,
    drawn: list[tuple[list[tuple[int, int]], int]],
    breaks: int,
    seq_len: int,
) -> None:
    # one that ends with an answer tells what the template writes after it
    documents, masks, turns = laid([*drawn, ([(1, 1)], 0)], breaks)
    text = list(range(10_000, 10_000 + 2 * seq_len + 3))
    data = {"seq_len": seq_len, "packing": packing, "long_conversations": what}
    run = tokens_store(
        tmp_path_factory.mktemp("turns"),
        {"talk": [shard(documents, masks)], "text": [shard([text], None)]},
        data=data,
    )
    rows = open_rows(run)
    kept = [d for d in documents if what != "drop" or len(d) <= seq_len]
    expected = sorted(token for document in [*kept, text] for token in document)
    assert sorted(np.concatenate(read(rows)).tolist()) == expected
    counts = rows.manifest["sources"]["talk"]
    assert counts["long_conversations"] == sum(len(d) > seq_len for d in documents)
    dropped = sum(map(len, documents)) - sum(map(len, kept))
    assert counts["dropped_tokens"] == rows.manifest["dropped_tokens"] == dropped
    if packing == "concat":
        return
    ends = np.cumsum([len(document) for document in [*documents, text]])
    found: dict[int, list[tuple[int, int]]] = {}
    for place, _, tokens in (
        piece for row in range(rows.per_epoch) for piece in rows.plan(0).row(row)
    ):
        document = int(np.searchsorted(ends, place, "right"))
        assert place + tokens <= ends[document], "a piece is of one document"
        begin = place - int(ends[document - 1] if document else 0)
        found.setdefault(document, []).append((begin, begin + tokens))
    for document, pieces in found.items():
        pieces.sort()
        assert [begin for begin, _ in pieces[1:]] == [end for _, end in pieces[:-1]]
        if what != "cut_at_turns" or document == len(documents):
            assert all(begin % seq_len == 0 for begin, _ in pieces)
            continue
        for begin, end in pieces:
            within = [turn for turn in turns[document] if begin < turn <= begin + seq_len]
            assert end == max(within, default=begin + seq_len), "as many whole turns as fit"


@pytest.mark.parametrize(
    ("template", "begins"),
    [
        (ChatML(), "<|im_start|>user\n"),
        (Plain(), "User: "),
        (Llama2(), "<|endoftext|>[INST] "),
        (Baichuan(user_token=1, assistant_token=2), "<|system|>"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Template) else "",
)
def test_each_piece_begins_with_a_users_turn(
    store: Path, tmp_path: Path, template: Template, begins: str
) -> None:
    tokenizer: Any = copy.deepcopy(load_tokenizer(store / "store/tokenizer"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if isinstance(template, Baichuan):
        begins = tokenizer.convert_ids_to_tokens(template.user_token)
    records = [
        Record(
            number,
            [
                {"role": role, "content": f"{role} says {turn} in talk {number}"}
                for turn in range(number)
                for role in ("user", "assistant")
            ],
        )
        for number in range(1, 12)
    ]
    encoded = encode(vocabulary(tokenizer), template, records).shard
    assert encoded is not None
    data = {"seq_len": 128, "packing": "best_fit"}
    pieces = read(open_rows(tokens_store(tmp_path, {"talk": [encoded]}, data=data)))
    assert len(pieces) > len(records)
    whole = [tokenizer.decode(piece) for piece in pieces]
    assert all(text.startswith(begins) for text in whole)
    assert all(text.count("user says") == text.count("assistant says") for text in whole)


def test_texts_among_conversations_are_never_dropped(tmp_path: Path) -> None:
    documents = [list(range(40)), list(range(100, 150)), list(range(200, 210))]
    masks = [[True] * 40, [False] * 25 + [True] * 25, [False] * 5 + [True] * 5]
    data = {"seq_len": 16, "packing": "best_fit", "long_conversations": "drop"}
    run = tokens_store(tmp_path, {"both": [shard(documents, masks)]}, data=data)
    rows = open_rows(run)
    found = np.sort(np.concatenate(read(rows))).tolist()
    assert found == [*range(40), *range(200, 210)]
    assert rows.manifest["sources"]["both"]["long_conversations"] == 1


def test_inspect_says_what_becomes_of_them(store: Path, tmp_path: Path) -> None:
    documents = [[2, *range(3, 33)], [2, 3]]
    masks = [[False] * 10 + [True] * 21, [False, True]]
    for what, packing, said in (
        ("cut_at_turns", "best_fit", "1 of them conversations: cut_at_turns"),
        ("cut_at_turns", "concat", "1 of them conversations: cut"),
        ("drop", "best_fit", "1 of them conversations: drop"),
    ):
        folder = tmp_path / f"{what}-{packing}"
        data = {"seq_len": 16, "packing": packing, "long_conversations": what}
        made, tokenizer = {"talk": [shard(documents, masks)]}, store / "store/tokenizer"
        run = tokens_store(folder, made, tokenizer=tokenizer, data=data)
        found = inspect(run)
        assert found.long_conversations == said
        left = 2 if what == "drop" else 33
        assert found.packings[packing]["fill"] == pytest.approx(
            left / (found.packings[packing]["rows"] * 16)
        )


def test_dropping_everything_is_refused_and_a_smoke_run_drops_nothing(tmp_path: Path) -> None:
    talk = shard([list(range(30))], [[False] * 10 + [True] * 20])
    data = {"seq_len": 16, "long_conversations": "drop"}
    run = tokens_store(tmp_path, {"talk": [talk]}, data=data)
    with pytest.raises(UserError, match=r"long_conversations=drop leaves nothing .*seq_len=16;"):
        open_rows(run)
    model = {"config": LLAMA, "init": "random",
             "family": {"_target_": "easyllm.models.families.Llama"}}  # fmt: skip
    changes = merged({"data": data}, {"model": model, "training": {"steps": 1}, "smoke": {}})
    smoke = tokens_store(tmp_path / "smoke", {"talk": [talk]}, **changes)
    assert shrink(smoke).data.long_conversations == "cut_at_turns"
