"""Messages in published shapes become one shape, or are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from easyllm.data.chat import beside
from easyllm.data.chat.messages import HARMLESS, ROLES, BadMessage, conversation, message
from easyllm.data.chat.tools import tools
from easyllm.errors import BadRecord

ASKED = {"role": "user", "content": "2 and 3?"}
ADD = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def said(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "Five.", **more}


@pytest.mark.parametrize(
    "call",
    [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'},
        },
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "add", "arguments": {"a": 2, "b": 3}},
        },
        {"id": "c1", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}, "type": None},
        {"id": "c1", "name": "add", "arguments": '{"a": 2, "b": 3}'},
        {"id": "c1", "name": "add", "arguments": {"a": 2, "b": 3}, "index": 0},
    ],
)
def test_arguments_are_an_object_however_they_are_given(call: dict[str, Any]) -> None:
    found = message({"role": "assistant", "content": None, "tool_calls": [call]})
    assert found == {"role": "assistant", "content": "", "tool_calls": [{**ADD, "id": "c1"}]}


@pytest.mark.parametrize("none", [None, "", " ", {}, "{}"])
def test_a_call_may_have_no_arguments(none: Any) -> None:
    found = message({"role": "assistant", "tool_calls": [{"name": "now", "arguments": none}]})
    assert found["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


def test_functions_of_old_are_tools() -> None:
    record = {"functions": [TOOL["function"]]}
    old = [
        ASKED,
        {"role": "assistant", "content": None,
         "function_call": {"name": "add", "arguments": '{"a":2,"b":3}'}},
        {"role": "function", "name": "add", "content": "5"},
        said(),
    ]  # fmt: skip
    new = [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [ADD]},
        {"role": "tool", "name": "add", "content": "5"},
        said(),
    ]
    assert beside.conversation(old, record) == beside.conversation(new, {"tools": [TOOL]})
    assert beside.conversation(old, record)[0] == {**ASKED, "tools": [TOOL]}


def test_speakers_whose_text_is_a_call() -> None:
    talk = [
        {"from": "human", "value": "2 and 3?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 3}}'},
        {"from": "observation", "value": "5"},
        {"from": "gpt", "value": "Five."},
    ]
    called = {"role": "assistant", "content": "", "tool_calls": [ADD]}
    found = [ASKED, called, {"role": "tool", "content": "5"}, said()]
    assert conversation(talk) == found
    call = {"role": "tool_call", "content": json.dumps(ADD["function"])}
    result = {"role": "tool_response", "content": "5"}
    assert conversation([ASKED, call, result, said()]) == found
    # one after the other is one turn with two calls, at once or in one text
    at_once = {"role": "function_call", "content": json.dumps([ADD["function"]] * 2)}
    assert conversation([ASKED, call, call, result]) == conversation([ASKED, at_once, result])
    assert conversation([ASKED, call, result, call])[3]["tool_calls"] == [ADD]
    for text in ("add(2, 3)", "[1]", '{"name": "add", "thought": "hm"}', '{"arguments": {}}'):
        with pytest.raises(BadRecord, match=r"message 1: .*'content'"):
            conversation([{"from": "function_call", "value": text}])


@pytest.mark.parametrize(
    "turn",
    [
        said(reasoning_content="2, 3: 5"),
        said(thinking="2, 3: 5"),
        said(reasoning="2, 3: 5", reasoning_content=None),
        said(reasoning="2, 3: 5", reasoning_content="2, 3: 5"),
        said(content=[{"type": "thinking", "thinking": "2, 3: 5", "signature": "x"},
                      {"type": "text", "text": "Five."}]),
        said(content=[{"type": "reasoning", "text": "2, 3: 5"}, {"type": "text", "text": "Five."}]),
        said(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "2, 3: 5"}]},
                      {"type": "text", "text": "Five.", "thinking": None}]),
    ],
)  # fmt: skip
def test_thoughts_stand_under_one_key(turn: dict[str, Any]) -> None:
    assert message(turn) == said(reasoning_content="2, 3: 5")


@pytest.mark.parametrize("nothing", [None, "", "\n\n"])
def test_no_thoughts_are_none(nothing: Any) -> None:
    assert message(said(reasoning_content=nothing)) == said()


@pytest.mark.parametrize(
    ("more", "trained"),
    [
        ({"weight": 0}, False), ({"weight": 0.0}, False), ({"weight": 1}, True),
        ({"weight": None}, True), ({"train": False}, False), ({"train": True}, True),
        ({"training": False}, False), ({"loss": False}, False), ({"loss": True}, True),
        ({"loss_scale": 0.0}, False), ({"masked": True}, False), ({"masked": False}, True),
        ({"weight": 0, "train": False}, False),
    ],
)  # fmt: skip
def test_a_record_says_which_answers_are_trained(more: dict[str, Any], trained: bool) -> None:
    assert message(said(**more)) == (said() if trained else said(train=False))


def test_what_is_not_the_assistants_is_never_trained() -> None:
    """A weight of 0 or a mask on other turns says what is so anyway."""
    for key in ("weight", "train", "loss"):
        assert message({**ASKED, key: 0}) == ASKED
        with pytest.raises(BadRecord, match=f"the user's and is to be trained, by {key}"):
            message({**ASKED, key: True})
    assert message({**ASKED, "masked": True}) == ASKED


@pytest.mark.parametrize("content", ["", " \n", None, []])
def test_an_empty_answer_is_no_answer(content: Any) -> None:
    """It stays where it stands, since the turns after it were said after it."""
    assert message({"role": "assistant", "content": content})["train"] is False
    call = {"role": "assistant", "content": content, "tool_calls": [ADD]}
    assert "train" not in message(call)
    assert "train" not in message({"role": "assistant", "content": content, "thinking": "hm"})


def test_null_is_never_a_word() -> None:
    assert message({"role": "tool", "content": None}) == {"role": "tool", "content": ""}
    for speaker in ("user", "system"):
        with pytest.raises(BadRecord, match=f"it is the {speaker}'s and has no content"):
            message({"role": speaker, "content": None})


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ("hi", "it is a text, not an object"),
        ({"content": "hi", "text": 1}, "it has no role, but the keys [content, text]"),
        ({"role": "robot", "content": "hi"}, 'its role is "robot", not one of system,'),
        ({"role": ["user"], "content": "hi"}, 'its role is ["user"], not one of'),
        ({**ASKED, "value": "other"}, "it has both 'content' = \"2 and 3?\" and 'value' = "),
        ({"role": "user", "from": "gpt", "content": "x"}, "it has both 'role' = \"user\" and"),
        ({"role": "user", "content": {"a": 1}}, 'its content is an object, {"a": 1}, not a text'),
        ({"role": "user", "content": ["hi"]}, "a part of its content is a text, not an object"),
        ({"role": "user", "content": [{"type": "image_url"}]}, 'has the type "image_url"'),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "holds null, not a text"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "bold": True}]},
         "it has the key 'bold' = true, whose meaning is not known"),
        ({"role": "user", "content": "\ud83d"}, "its content is not Unicode at character 1"),
        ({**ASKED, "thinking": "hm"}, "it is the user's and has 'thinking' = \"hm\""),
        (said(thinking="a", reasoning="b"), "different thoughts in 'thinking' and 'reasoning'"),
        (said(thinking={"a": 1}), "'thinking' = {\"a\": 1}, which is an object, not a text"),
        (said(weight=0.5), "the key 'weight' = 0.5; an answer is trained (1) or not (0)"),
        (said(weight="0"), "the key 'weight' = \"0\""),
        (said(weight=1, train=False), "by one key and not by another: train, weight"),
        (said(train_detail=[{"begin_offset": 0}]), "the key 'train_detail' = [{\"begin_offset\""),
        (said(refusal="I won't."), "the key 'refusal' = \"I won't.\", whose meaning is not known"),
        (said(prefix=True), "the key 'prefix' = true, whose meaning is not known"),
        (said(tool_call_id=4), "the key 'tool_call_id' = 4, which is a number, not a text"),
        ({**ASKED, "tool_calls": [ADD]}, "it is the user's and has 'tool_calls' = "),
        (said(tool_calls=[ADD], function_call=ADD["function"]), "it names its calls twice"),
        (said(tool_calls={"name": "f"}), "'tool_calls' is an object, not a list of calls"),
        (said(tool_calls=[{"type": "custom"}]), 'call 1 of \'tool_calls\' is of the type "custom"'),
        (said(tool_calls=[ADD, {"name": "f", "arguments": "[1]"}]),
         "'arguments' of call 2 of 'tool_calls' spells a list, [1], not an object"),
        (said(tool_calls=[{"name": "f", "arguments": "a=1"}]), "'arguments' of call 1 of"),
        (said(tool_calls=[{"name": "f", "arguments": '{"a": 1, "a": 2}'}]), "occurs twice"),
        (said(tool_calls=[{"name": "f", "arguments": '{"a": NaN}'}]), "not a value of JSON"),
        (said(tool_calls=[{"name": "f", "arguments": '{"a": "\\ud83d"}'}]), "not Unicode"),
        (said(tool_calls=[{"name": "f", "parameters": {"a": 2}}]),
         "call 1 of 'tool_calls' has the key"),
        (said(tool_calls=[{"function": {"name": None}}]), "call 1 of 'tool_calls' has no name"),
        (said(function_call="auto"), "call 1 of 'function_call' is a text, not an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(turn: Any, why: str) -> None:
    with pytest.raises(BadMessage) as refused:
        conversation([ASKED, turn], ())
    assert refused.value.number == 2 and why in refused.value.reason


def test_a_key_is_used_or_harmless_or_named() -> None:
    known = dict.fromkeys(HARMLESS, "x")
    assert message({**ASKED, **known, "custom": None, "notes": [], "extra_": {}}) == ASKED
    with pytest.raises(BadRecord, match=r"'custom' = false.*name it in the reader's ignored_keys"):
        message({**ASKED, "custom": False}, ())
    assert message({**ASKED, "custom": False}, ("custom",)) == ASKED


def test_what_is_made_is_made_of_itself() -> None:
    turns = [
        {"system": "s"},
        ASKED,
        said(thinking="x", weight=0, tool_calls=[ADD]),
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"from": "GPT", "value": ""},
    ]
    made = conversation(turns)
    assert conversation(made) == made
    assert [m["role"] for m in made] == ["system", "user", "assistant", "tool", "assistant"]
    assert set(ROLES.values()) == {"system", "user", "assistant", "tool"}


@pytest.mark.parametrize("turns", [[], "hi", None, {"role": "user"}, 3])
def test_a_conversation_is_a_list(turns: Any) -> None:
    kinds = {list: "an empty list", str: "a text", dict: "an object", int: "a number"}
    kind = kinds.get(type(turns), "null")
    with pytest.raises(BadRecord, match=f"^a conversation is a list of messages, not {kind}$"):
        conversation(turns)


def test_depths_that_python_does_not_reach_are_bad_messages() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [{"type": "thinking", "thinking": deep}]
    call = {"name": "f", "arguments": {"a": deep}}
    for turn in (said(content=deep), said(custom=deep), said(tool_calls=[call]), said(value=deep)):
        with pytest.raises(BadMessage):
            conversation([turn])
    with pytest.raises(BadRecord):
        beside.conversation([ASKED], {"tools": deep})


@pytest.mark.parametrize(
    "given",
    [[TOOL], json.dumps([TOOL]), [TOOL["function"]], [json.dumps(TOOL)], ({**TOOL, "id": None},),
     [{"type": "function", **TOOL["function"]}]],
)  # fmt: skip
def test_tools_are_in_one_form(given: Any) -> None:
    assert tools(given) == [TOOL]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("add", "'tools' is not JSON"),
        ({"add": {}}, "'tools' is an object, not a list of tools"),
        ([{"type": "web_search"}], "tool 1 of 'tools' is of the type \"web_search\""),
        ([TOOL, {}], "tool 2 of 'tools' has no name"),
        ([{"type": "function", "function": "add"}], "'function' of tool 1 of 'tools' is a text"),
        ([{**TOOL, "cost": 3}], "tool 1 of 'tools' has the key 'cost' = 3"),
    ],
)
def test_tools_that_are_none_are_named(given: Any, why: str) -> None:
    with pytest.raises(BadRecord) as refused:
        tools(given)
    assert why in str(refused.value)


def test_what_stands_beside_a_conversation_is_used() -> None:
    plain = {"id": 4, "source": "web", "category": "maths", "score": 0.5, "thinking": "on"}
    system = {"role": "system", "content": "Be brief."}
    record = {**plain, "system": "Be brief.", "tools": json.dumps([TOOL])}
    assert beside.conversation([ASKED, said()], record) == [
        {**system, "tools": [TOOL]},
        ASKED,
        said(),
    ]
    assert beside.conversation([system, ASKED], {"system": "Be brief."}) == [system, ASKED]
    empty = {"tools": [], "system": "", "functions": None, "tool_choice": "auto", "images": [],
             "response_format": {"type": "text"}, "parallel_tool_calls": True}  # fmt: skip
    assert beside.conversation([ASKED, said()], empty) == [ASKED, said()]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"system": {"text": "x"}}, '\'system\' is an object, {"text": "x"}, not a text'),
        ({"system": "a", "system_prompt": "b"}, "different system prompts in 'system' and"),
        ({"system": "other"}, "different system prompts in 'system' and its first message"),
        ({"tools": [TOOL], "functions": [{"name": "other"}]}, "different tools in 'tools' and"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "the record has 'chat_template_kw"),
        ({"enable_thinking": False}, "the record has 'enable_thinking' = false"),
        ({"response_format": {"type": "json_object"}}, "the record has 'response_format' = "),
        ({"tool_choice": "required"}, "the record has 'tool_choice' = \"required\""),
        ({"images": ["a.png"]}, "the record has 'images' = [\"a.png\"]"),
        ({"parallel_tool_calls": False}, "message 3 calls 2 tools at once"),
        ({"parallel_tool_calls": "no"}, "'parallel_tool_calls' is a text, not true or false"),
    ],
)
def test_what_is_not_used_is_named(record: dict[str, Any], why: str) -> None:
    turns = [{"role": "system", "content": "s"}, ASKED, said(tool_calls=[ADD, ADD])]
    with pytest.raises(BadRecord) as refused:
        beside.conversation(turns, record)
    assert why in str(refused.value)
    assert beside.conversation(turns, record, tuple(record)) == conversation(turns)
