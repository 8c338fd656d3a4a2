"""The sampling fields that a record of batch inference gives besides its prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from easyllm.data.chat import beside
from easyllm.data.chat.values import is_empty, shown
from easyllm.errors import UserError
from easyllm.spec.inference import SamplingSpec
from easyllm.spec.schema import read_group

FIELDS = tuple(field.name for field in dataclasses.fields(SamplingSpec))
"""Keys of a record that override ``inference.sampling``."""

NAMES = (*FIELDS, "max_completion_tokens", "top_logprobs")
"""The same with OpenAI's further names."""

NOT_TAKEN_UP: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": (),
    "logit_bias": (),
    "bad_words": (),
    "allowed_token_ids": (),
    "prompt_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
}
"""Options of OpenAI's and vLLM's requests that batch inference does not have, with the values
that change nothing."""

WITHOUT_EFFECT = frozenset(
    {
        *("model", "user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "stream_options", "verbosity"),
    }
)
"""Keys of a request that change no answer here; ``model`` because the run has one."""


def sampling(record: Mapping[str, Any], default: SamplingSpec) -> SamplingSpec:
    """``default``, overridden by a record's own fields; null keeps the default's.

    Raises UserError, naming the field, for a value that the field does not allow, and for an
    option that is not offered.
    """
    for key, values in NOT_TAKEN_UP.items():
        value = record.get(key)
        if not is_empty(value) and value not in values:
            raise UserError(f"{key} = {shown(value)} is not offered by batch inference; remove it")
    own = {key: record[key] for key in NAMES if _is_given(record.get(key))}
    if not own:
        return default
    longest, top = own.pop("max_completion_tokens", None), own.pop("top_logprobs", None)
    if longest is not None:
        own["max_tokens"] = longest
    if own.get("logprobs") is True or top is not None:
        if own.get("logprobs") is not True:
            raise UserError(f"top_logprobs = {shown(top)} needs logprobs = true")
        own["logprobs"] = top or 0
    elif own.get("logprobs") is False:
        own["logprobs"] = None
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    laid = {**dataclasses.asdict(default), **own}
    made, problems = read_group(SamplingSpec, laid)
    if problems:
        said = [f"{p.key} = {shown(p.value)} {p.message}" for p in problems]
        raise UserError("; ".join(said))
    if made.min_tokens > made.max_tokens:
        raise UserError(f"min_tokens = {made.min_tokens} is above max_tokens = {made.max_tokens}")
    assert isinstance(made, SamplingSpec)
    return made


def without_tools(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """``record``, without the choice of no tool where it has no tools."""
    if any(not is_empty(record.get(key)) for key in beside.TOOLS):
        return record
    choices = ("tool_choice", "function_call")
    return {key: v for key, v in record.items() if key not in choices or v != "none"}


def _is_given(value: Any) -> bool:
    """Whether a value is given; null is not, nor is NaN, which pandas writes for null."""
    return value is not None and value == value


def request(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body of a line of OpenAI's batch files, ``{"custom_id", "method", "url", "body"}``.

    Raises UserError for another route than the two that generate, another method than POST, and
    a body without the route's prompt.
    """
    body: Mapping[str, Any] = record["body"]
    url = record.get("url")
    wanted = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
    if url is not None and url not in wanted:
        raise UserError(f"url = {shown(url)} is not one of {', '.join(wanted)}")
    if record.get("method") not in (None, "POST"):
        raise UserError(f"method = {shown(record['method'])} is not POST")
    if url is not None and is_empty(body.get(wanted[url])):
        raise UserError(f"the body has no {wanted[url]!r}, which {url} needs")
    return body
