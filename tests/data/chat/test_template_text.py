from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from easyllm.data.chat.template_text import asks_for_date, set_defaults, with_date, with_defaults
from easyllm.data.encoding import load_tokenizer
from easyllm.data.templates import TRAINED_DATE, TokenizerTemplate
from easyllm.errors import UserError
from tests.data.chat import published
from tests.data.chat.published import chat, tokenizer_for

TODAY = datetime.datetime.now().astimezone()


def rendered(tokenizer: Any, **arguments: Any) -> str:
    asked = chat(1)[:1]
    return str(tokenizer.apply_chat_template(asked, tokenize=False, **arguments))


@pytest.mark.parametrize(
    ("name", "form"),
    [("llama3_2", "%d %b %Y"), ("gptoss", "%Y-%m-%d"), ("muse_glimmer", "%Y-%m-%d")],
)
def test_the_date_of_training_stays(name: str, form: str) -> None:
    """In plain transformers too; a server may want today's, or another."""
    tokenizer = tokenizer_for(published.template("trl", name))
    assert TODAY.strftime(form) in rendered(tokenizer)
    fixed = TokenizerTemplate().chat_template(tokenizer)
    assert fixed is not None
    tokenizer.chat_template = fixed
    trained = datetime.date.fromisoformat(TRAINED_DATE).strftime(form)
    assert trained in rendered(tokenizer) and TODAY.strftime(form) not in rendered(tokenizer)
    assert not asks_for_date(fixed), "it is fixed once"
    assert TokenizerTemplate().chat_template(tokenizer) is None
    for date, expected in (
        ("today", TODAY.strftime(form)),
        ("2031-05-17", datetime.date(2031, 5, 17).strftime(form)),
    ):
        ids = TokenizerTemplate(date=date).prompt(tokenizer, chat(1)[:1])
        assert expected in tokenizer.decode(ids)


def test_a_computed_date_is_refused() -> None:
    with pytest.raises(UserError, match="format that it computes"):
        with_date("{{ strftime_now(format) }}", "2025-01-01")
    with pytest.raises(UserError, match="several chat templates"):
        with_date({"default": "{{ strftime_now('%Y') }}"}, "2025-01-01")
    made = with_date('\n{{ strftime_now("it\'s %Y") }}', "2025-01-01")
    assert rendered(tokenizer_for(made)) == "\nit's 2025"


@pytest.mark.parametrize("own_file", [True, False])
def test_defaults_are_the_callers_to_change(tmp_path: Path, own_file: bool) -> None:
    tokenizer = tokenizer_for(
        "\n{{ 'on' if enable_thinking is not defined or enable_thinking else 'off' }}"
    )
    tokenizer.save_pretrained(tmp_path)
    if not own_file:
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config["chat_template"] = (tmp_path / "chat_template.jinja").read_text()
        (tmp_path / "chat_template.jinja").unlink()
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    set_defaults(tmp_path, {"enable_thinking": False})
    loaded = load_tokenizer(tmp_path)
    assert rendered(loaded) == "\noff"
    assert rendered(loaded, enable_thinking=True) == "\non"


def test_defaults_reach_into_macros() -> None:
    text = "{% macro say() %}{{ mode }}{% endmacro %}{{ say() }}"
    assert rendered(tokenizer_for(with_defaults(text, {"mode": "quiet"}))) == "quiet"
