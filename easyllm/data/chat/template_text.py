"""Changes the text of a chat template so that every library renders what training used."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from easyllm.errors import UserError

ASKED = re.compile(
    r"strftime_now\(\s*(?P<quote>['\"])(?P<format>(?:(?!(?P=quote)).)*)(?P=quote)\s*\)"
)
"""How a template asks for the date: transformers gives it the function ``strftime_now``."""

FREE = "use_current_date"
"""An argument of the template that replaces a fixed date by today's again."""


def with_date(template: str, date: str) -> str:
    """The template with ``date``, in ISO form, where it asks for today's and holds none yet.

    The argument ``use_current_date=true`` brings today's back. Raises UserError where the
    template asks in a way that cannot be replaced.
    """
    if "strftime_now(" not in template or FREE in template:
        return template
    day = datetime.date.fromisoformat(date)

    def fixed(found: re.Match[str]) -> str:
        text = day.strftime(found["format"]).replace("\\", "\\\\").replace("'", "\\'")
        return f"({found[0]} if {FREE} else '{text}')"

    made = ASKED.sub(fixed, template)
    if made.count("strftime_now(") != len(ASKED.findall(made)):
        raise UserError(
            "the tokenizer's chat_template asks for today's date in a format that it computes; "
            "write the date into chat_template.jinja in the tokenizer's folder"
        )
    return made


def set_date(folder: Path, date: str) -> None:
    """``with_date`` on every chat template of a tokenizer's folder."""
    _change(folder, lambda template: with_date(template, date))


@functools.cache  # the same function each time, because templates are cached by their arguments
def date_arguments(date: str) -> dict[str, Any]:
    """Arguments with which a template gets ``date``, in ISO form, or today's where it is
    ``today``."""
    if date == "today":
        return {FREE: True}
    midnight = datetime.datetime.fromisoformat(date)
    return {FREE: True, "strftime_now": midnight.strftime}


def with_defaults(template: str, arguments: Mapping[str, Any]) -> str:
    """The template with values for arguments that its caller does not give."""
    begin = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {json.dumps(value)} %}}{{%- endif %}}"
        for name, value in arguments.items()
    )
    # the empty text keeps a line break at the template's beginning, which a tag would remove
    return begin + "{{ '' }}" + template


def set_defaults(folder: Path, arguments: Mapping[str, Any]) -> None:
    """``with_defaults`` on every chat template of a tokenizer's folder."""
    _change(folder, lambda template: with_defaults(template, arguments))


def _change(folder: Path, change: Callable[[str], str]) -> None:
    """Change the templates of a folder in place: in separate files, or in
    ``tokenizer_config.json`` as one text or a list of named ones."""
    for file in [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]:
        if file.is_file():
            file.write_text(change(file.read_text("utf-8")), "utf-8")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    held = config.get("chat_template")
    if isinstance(held, str):
        changed: Any = change(held)
    elif isinstance(held, list):
        changed = [{**entry, "template": change(entry["template"])} for entry in held]
    else:
        return
    if changed != held:
        config["chat_template"] = changed
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
