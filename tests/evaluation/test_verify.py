"""What was trained is compared with what is served: the sound way passes, and whatever breaks it is
named where it breaks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from easyllm.errors import UserError
from easyllm.evaluation.verify.comparisons import (
    Comparison,
    answers,
    first_difference,
    logprobs,
    tokens,
)
from easyllm.evaluation.verify.verify import verify
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.evaluation.conftest import Exported
from tests.inference.small import save_model
from tests.serving.served import Served
from tests.serving.served import spec as serving_spec
from tests.support import run_spec


def differing(found: list[Comparison]) -> list[str]:
    return [comparison.name for comparison in found if comparison.status == "differs"]


def compared(found: list[Comparison]) -> set[str]:
    return {comparison.name for comparison in found if comparison.status == "same"}


def test_the_sound_way_passes(exported: Exported) -> None:
    found = verify(exported.run("model")).comparisons
    assert differing(found) == []
    assert compared(found) == {
        "store", "tokenizer", "chat template", "packing", "weights", "gradient", "held-out loss",
        "engine's tokenizer", "engine's prompts", "engine's numbers", "engine's answers",
    }  # fmt: skip
    loss = next(comparison for comparison in found if comparison.name == "held-out loss").numbers[
        "loss"
    ]
    assert loss[0] == pytest.approx(loss[1], abs=1e-5)


@pytest.mark.parametrize("how", ["merged", "adapter"])
def test_the_sound_way_of_an_adapter_passes(exported: Exported, how: str) -> None:
    """Merged by an engine; alone by transformers with peft."""
    run = exported.run("adapter", {"export": {"adapter": how}})
    if how == "adapter":
        load("export").work(run, Rank())
    found = verify(run).comparisons
    assert differing(found) == []
    assert ("merged adapter" if how == "merged" else "weights") in compared(found)
    assert ("engine's answers" in compared(found)) is (how == "merged")


def test_a_gguf_file_is_compared_with_the_checkpoint(exported: Exported) -> None:
    run = exported.run("model", {"export": {"format": "gguf"}})
    load("export").work(run, Rank())
    found = verify(run).comparisons
    assert differing(found) == []
    assert {"store", "weights", "held-out loss", "engine's answers"} <= compared(found)


def _json(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), "utf-8")


def another_vocabulary(folder: Path) -> None:
    def change(content: Any) -> None:
        vocabulary = content["model"]["vocab"]
        first, second = "Ġcat", "Ġdog"
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]

    _json(folder / "tokenizer.json", change)


def no_pre_tokenizer(folder: Path) -> None:
    _json(folder / "tokenizer.json", lambda content: content.update(pre_tokenizer=None))


def one_space_more(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    text = file.read_text("utf-8")
    assert "'User: '" in text or '"User: "' in text
    file.write_text(text.replace("User: ", "User:  ", 1), "utf-8")


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    (file,) = folder.glob("*.safetensors")
    held = load_file(file)
    change(held)
    save_file(held, file, metadata={"format": "pt"})


def head_left_tied(folder: Path) -> None:
    _json(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    _weights(folder, lambda held: held.pop("lm_head.weight"))


def norms_in_another_dtype(folder: Path) -> None:
    def change(held: dict[str, torch.Tensor]) -> None:
        for name, tensor in held.items():
            if "norm" in name:
                held[name] = tensor.bfloat16()

    _weights(folder, change)


BREAKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another vocabulary": (another_vocabulary, "tokenizer"),
    "no pre_tokenizer": (no_pre_tokenizer, "tokenizer"),
    "one space more": (one_space_more, "chat template"),
    "a head left tied": (head_left_tied, "weights"),
    "norms in another dtype": (norms_in_another_dtype, "weights"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_export_is_named_where_it_breaks(
    exported: Exported, tmp_path: Path, how: str
) -> None:
    change, name = BREAKS[how]
    shutil.copytree(exported.folder("model"), tmp_path / "export")
    change(tmp_path / "export")
    found = verify(
        exported.run("model", {"export": {"output": str(tmp_path / "export")}})
    ).comparisons
    assert differing(found)[0] == name
    assert all(
        comparison.means and comparison.found
        for comparison in found
        if comparison.status == "differs"
    )


def test_weights_are_compared_although_no_engine_loads_them(
    exported: Exported, tmp_path: Path
) -> None:
    """Transformers fills in what is missing; our engines refuse it."""
    shutil.copytree(exported.folder("model"), tmp_path / "export")
    _weights(tmp_path / "export", lambda held: held.pop("model.layers.1.mlp.up_proj.weight"))
    run = exported.run("model", {"export": {"output": str(tmp_path / "export")}})
    found = verify(run)
    assert found.first_difference is not None and found.first_difference.name == "weights"
    last = found.comparisons[-1]
    assert last.name == "engine" and "up_proj" in last.found


def test_an_adapter_merged_twice(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported.folder("adapter"), folder)
    (base,) = (exported.small.root / "untied").glob("*.safetensors")
    before = load_file(base)

    def change(held: dict[str, torch.Tensor]) -> None:
        for name, tensor in held.items():
            held[name] = 2 * tensor - before[name]

    _weights(folder, change)
    found = verify(exported.run("adapter", {"export": {"output": str(folder)}})).comparisons
    assert differing(found)[0] == "merged adapter"


def test_a_source_that_changed(exported: Exported, tmp_path: Path) -> None:
    talk = tmp_path / "talk.tsv"
    talk.write_text((exported.small.root / "talk.tsv").read_text().replace("the", "a", 1))
    sources = {"data": {"sources": {"talk": {"path": str(talk)}}}}
    found = verify(exported.run("model", sources)).comparisons
    assert differing(found)[0] == "store"


def test_a_mask_that_changed(exported: Exported, tmp_path: Path) -> None:
    """The same tokens, of which fewer are trained."""
    records, left_out = [], 0
    for line in (exported.small.root / "talk.tsv").read_text("utf-8").splitlines():
        texts = line.split("\t")
        roles = ["user", "assistant"] * (len(texts) // 2)
        messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
        if len(messages) > 2:
            messages[1]["train"] = False  # type: ignore[assignment]
            left_out += len(records) < 8
        records.append(json.dumps({"messages": messages}))
    assert left_out
    (tmp_path / "talk.jsonl").write_text("\n".join(records), "utf-8")
    reader = {
        "_target_": "easyllm.data.sources.readers.OpenAI",
        "path": str(tmp_path / "talk.jsonl"),
    }
    run = exported.run("model", {"data": {"sources": {"talk": reader}}, "verify": {"documents": 8}})
    found = verify(run).first_difference
    assert found is not None and found.name == "store"
    assert found.between.endswith("which tokens are trained")


@pytest.fixture
def another_model(tmp_path: Path) -> Iterator[Served]:
    """A server whose model has other weights and the same tokenizer."""
    served = Served(serving_spec(tmp_path, save_model(tmp_path / "other", initializer_range=0.2)))
    yield served
    served.close()


def test_a_server_with_another_model(tmp_path: Path, another_model: Served) -> None:
    folder = save_model(tmp_path / "model")
    settings = {"inference": {"model": str(folder)}, "model": {"dtype": "float32"}}
    url = {"documents": 2, "new_tokens": 6, "url": another_model.url}
    run = run_spec(tmp_path, {**settings, "verify": url})
    found = verify(run).comparisons
    assert differing(found) == ["server's numbers", "server's answers"]
    assert {"server's tokenizer", "engine's numbers"} <= compared(found)
    # greedy answers are asked for whatever the server has by default
    own = {"sampling": {"repetition_penalty": 1.5, "max_tokens": 9}}
    same = Served(serving_spec(tmp_path, folder, inference=own))
    try:
        run = run_spec(tmp_path, {**settings, "verify": {**url, "url": f"{same.url}/v1"}})
        found = verify(run).comparisons
        assert differing(found) == []
        assert {"server's numbers", "server's answers"} <= compared(found)
    finally:
        same.close()


def test_a_stage_that_finds_a_difference_fails(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported.folder("model"), tmp_path / "export")
    another_vocabulary(tmp_path / "export")
    run = exported.run("model", {"export": {"output": str(tmp_path / "export")}})
    with pytest.raises(
        UserError, match=r"tokenizer \(the store ~ .* Usually: the folder has other"
    ):
        load("verify").work(run, Rank())
    table = capsys.readouterr().out
    assert "tokenizer" in table and "differs" in table
    written = json.loads((Path(str(run.run_dir)) / "verify.json").read_text("utf-8"))
    comparison = next(one for one in written["comparisons"] if one["status"] == "differs")
    assert written["versions"]["transformers"] and any(written["documents"][0]["trained"])
    assert comparison["numbers"]["ours"] != comparison["numbers"]["theirs"]


def test_a_server_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model")
    served = Served(serving_spec(tmp_path, folder), keys=("sesame",))
    try:
        settings = {"inference": {"model": str(folder)}, "model": {"dtype": "float32"}}
        few = {"documents": 1, "new_tokens": 2, "url": served.url}
        run = run_spec(tmp_path, {**settings, "verify": few})
        with pytest.raises(
            UserError, match=r"answers 401: give the server's API key .*EASYLLM_API_"
        ):
            verify(run)
        monkeypatch.setenv("EASYLLM_API_KEY", "sesame")
        assert "server's numbers" in compared(verify(run).comparisons)
    finally:
        served.close()


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    url = "http://127.0.0.1:9"
    run = run_spec(tmp_path, {"inference": {"model": str(folder)}, "verify": {"url": url}})
    with pytest.raises(UserError, match=r"verify\.url: .*/v1/models cannot be read"):
        verify(run)


def test_comparisons() -> None:
    same = tokens("a", "b", {"x": [1, 2]}, {"x": [1, 2]}, "c")
    assert same.status == "same" and same.found == "2 tokens of 1 texts"
    found = tokens("a", "b", {"x": [1, 2, 3]}, {"x": [1, 2]}, "c")
    assert found.status == "differs" and found.numbers["token"] == 3 and "the end" in found.found
    assert tokens("a", "b", {"x": [1]}, {"x": "why not"}, "c").found == "x: why not"
    assert first_difference([1, 2], [1, 2, 3]) == 2
    found = logprobs("a", "b", [[-1.0]], [[float("nan")]], ["x"], "bfloat16", "c")
    assert found.status == "differs"
    found = logprobs("a", "b", [[-1.0, -2.0]], [[-1.0, -2.05]], ["x"], "bfloat16", "c")
    assert found.status == "same" and found.numbers["loss"] == [1.5, 1.525]
    greedy = [{"tokens": [5, 6], "margins": [0.5, 1e-5]}]
    tie = answers("a", "b", greedy, [[5, 7]], ["x"], "float32", "c")
    assert tie.status == "same" and tie.numbers["ties"] == 1
    assert answers("a", "b", greedy, [[4, 6]], ["x"], "float32", "c").status == "differs"
