"""How values are typed: what quotation marks, escapes and remedies mean."""

from __future__ import annotations

import shlex

import yaml
from hypothesis import given
from hypothesis import strategies as st

from easyllm.__main__ import main
from easyllm.cli.command_line import quoting
from easyllm.cli.command_line.overrides import read
from easyllm.cli.compose import compose
from easyllm.cli.library import Library, shipped_folder
from easyllm.printable import printable

LIBRARY = Library(shipped_folder())
TYPED = st.text("ab'\"\\n[]{},:$ =()\t~é", max_size=12)


@given(TYPED)
def test_a_remedy_that_is_followed_gives_the_text(text: str) -> None:
    (word,) = shlex.split(quoting.quoted("serving.model_name", text))
    assert compose(read([word, "model=tiny"], LIBRARY), LIBRARY)["serving"]["model_name"] == text


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats(-9, 9) | TYPED,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
))  # fmt: skip
def test_a_value_that_is_spelled_is_read_again(value: object) -> None:
    word = f"model.overrides.x={quoting.spelled(value)}"
    found = compose(read([word, "model=tiny"], LIBRARY), LIBRARY)["model"]["overrides"]["x"]
    assert found == value


def test_line_breaks_between_double_quotes(capsys, empty) -> None:
    """As in YAML; elsewhere a backslash is one, which is said."""

    def stop(typed: str) -> list[str]:
        words = [f"inference.sampling.stop={typed}", "model=tiny"]
        return compose(read(words, LIBRARY), LIBRARY)["inference"]["sampling"]["stop"]

    for typed in ('["\\n"]', '["a\\tb", "\\n\\n"]', '["\\""]'):
        assert stop(typed) == yaml.safe_load(typed)
    assert stop("['\\n']") == stop("[\\n]") == ["\\n"]
    for typed, said in (('["\\n"]', False), ("['\\n']", True), ("[\\n]", True)):
        assert main(["+recipe=demo", "stages=[]", f"inference.sampling.stop={typed}"]) == 0
        message = capsys.readouterr().err
        assert ("is a backslash and an n" in message and "'stop=[\"\\n\"]'" in message) == said


def test_elements_as_they_were_typed() -> None:
    assert quoting.elements("[a, 1e3,'x,y',[b,c],\"]\"]") == ["a", "1e3", "'x,y'", "[b,c]", '"]"']
    assert quoting.elements("a") is None


def test_what_a_terminal_obeys_is_shown() -> None:
    assert printable("\x1b[31mré\u202e\x9b\ud800\n") == "\\x1b[31mré\\u202e\\x9b\\ud800\n"
    assert printable("a\nb", keep="") == "a\\nb"


def test_several_sources_and_trackers(empty) -> None:
    (empty / "a.jsonl").write_text('{"messages": []}\n')
    paths = [f"data.sources.{name}.path=a.jsonl" for name in ("openai", "sharegpt")]
    words = ["+recipe=demo", "stages=[]", "data=[openai,sharegpt]", *paths]
    words += ["+tracker=mlflow", "+tracker=tensorboard"]
    assert main(words) == 0
    config = compose(read(words, LIBRARY), LIBRARY)
    assert sorted(config["data"]["sources"]) == ["openai", "sharegpt"]
    assert sorted(config["training"]["trackers"]) == ["mlflow", "tensorboard"]
