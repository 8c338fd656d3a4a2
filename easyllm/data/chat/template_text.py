"""The text of a chat template, changed so that whoever renders it gets what training used."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyllm.errors import UserError

ASKED = re.compile(
    r"strftime_now\(\s*(?P<quote>['\"])(?P<format>(?:(?!(?P=quote)).)*)(?P=quote)\s*\)"
)
"""How a template asks: transformers gives it the function ``strftime_now``."""

FREE = "use_current_date"
"""An argument of the template with which a fixed date is free again."""


def asks_for_date(template: Any) -> bool:
    """Whether the text of a chat template asks for today's date and does not hold one yet."""
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return any("strftime_now(" in text and FREE not in text for text in texts)


def with_date(template: Any, date: str) -> str:
    """The template with ``date``, in ISO form, where it asks for today's.

    The argument ``use_current_date=true`` brings today's back. Raises UserError where the
    template asks in a way that cannot be replaced.
    """
    if isinstance(template, dict):
        raise UserError(
            f"the tokenizer has several chat templates ({', '.join(template)}) that ask for "
            "today's date; keep one of them in the tokenizer's folder"
        )
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


@functools.cache  # the same function each time, by which a template is known
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
    # the empty text keeps a line break at the template's beginning, which a tag would take
    return begin + "{{ '' }}" + template


def set_defaults(folder: Path, arguments: Mapping[str, Any]) -> None:
    """``with_defaults`` on the one chat template of a tokenizer's folder."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        text = file.read_text("utf-8")
    else:
        text = json.loads(config.read_text("utf-8")).get("chat_template")
    if isinstance(text, str):  # of several templates a caller chooses one, with its arguments
        file.write_text(with_defaults(text, arguments), "utf-8")
