from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from easyllm.data.chat.template_text import set_defaults, with_date, with_defaults
from easyllm.data.chat.templates import TRAINED_DATE, TokenizerTemplate
from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.errors import UserError
from tests.data.chat import published
from tests.data.chat.published import chat, tokenizer_for
from tests.support import run_spec

TODAY = datetime.datetime.now().astimezone()


def rendered(tokenizer: Any, **arguments: Any) -> str:
    asked = chat(1)[:1]
    return str(tokenizer.apply_chat_template(asked, tokenize=False, **arguments))


@pytest.mark.parametrize(
    ("name", "form"),
    [("llama3_2", "%d %b %Y"), ("gptoss", "%Y-%m-%d"), ("muse_glimmer", "%Y-%m-%d")],
)
def test_the_date_of_training_stays(tmp_path: Path, name: str, form: str) -> None:
    """In plain transformers too; a server may want today's, or another."""
    tokenizer = tokenizer_for(published.template("trl", name))
    assert TODAY.strftime(form) in rendered(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    TokenizerTemplate().prepare(tmp_path)
    fixed = (tmp_path / "chat_template.jinja").read_text()
    tokenizer = load_tokenizer(tmp_path)
    trained = datetime.date.fromisoformat(TRAINED_DATE).strftime(form)
    assert trained in rendered(tokenizer) and TODAY.strftime(form) not in rendered(tokenizer)
    TokenizerTemplate(date="1999-12-31").prepare(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == fixed, "it is fixed once"
    for date, expected in (
        ("today", TODAY.strftime(form)),
        ("2031-05-17", datetime.date(2031, 5, 17).strftime(form)),
    ):
        ids = TokenizerTemplate(date=date).prompt(tokenizer, chat(1)[:1])
        assert expected in tokenizer.decode(ids)


def test_other_templates_stay_as_they_are() -> None:
    plain = published.template("trl", "qwen2_5")
    assert with_date(plain, "2025-01-01") == plain
    with pytest.raises(UserError, match="format that it computes"):
        with_date("{{ strftime_now(format) }}", "2025-01-01")
    made = with_date('\n{{ strftime_now("it\'s %Y") }}', "2025-01-01")
    assert rendered(tokenizer_for(made)) == "\nit's 2025"


def test_each_of_several_templates_gets_the_date(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("{{ strftime_now('%Y') }}")
    tokenizer.chat_template = {"default": "plain", "tool_use": "{{ strftime_now('%Y') }}"}
    tokenizer.save_pretrained(tmp_path)
    TokenizerTemplate(date="1999-12-31").prepare(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert rendered(loaded) == "plain"
    assert rendered(loaded, chat_template="tool_use") == "1999"


def test_dates_of_the_spec(tmp_path: Path) -> None:
    def told(date: str, *stages: str) -> list[str]:
        run = dataclasses.replace(run_spec(tmp_path, {}), stages=stages)
        problems = TokenizerTemplate(date=date).problems("data.template", run)
        return [f"{problem.key}: {problem.message}" for problem in problems]

    assert told("2025-01-31", "tokenize") == told("today", "serve") == []
    assert told("yesterday") == ["data.template.date: is no date"]
    assert told("today", "tokenize") == ["data.template.date: a store must not depend on the day"]


def test_arguments_reach_the_template() -> None:
    tokenizer = tokenizer_for("{{ 'off' if enable_thinking is false else 'on' }}")
    ids = TokenizerTemplate(arguments={"enable_thinking": False}).prompt(tokenizer, chat(1)[:1])
    assert tokenizer.decode(ids) == "off"
    assert tokenizer.decode(TokenizerTemplate().prompt(tokenizer, chat(1)[:1])) == "on"


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
