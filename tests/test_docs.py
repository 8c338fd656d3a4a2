"""What README and docs/ say is so, as far as it shows without a run: commands and YAML compose,
keys, messages, files, tests and links exist."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easyllm import runfile
from easyllm.__main__ import main
from easyllm.cli.check import check
from easyllm.cli.command_line import flags
from easyllm.cli.command_line.overrides import read
from easyllm.cli.compose import complete, compose
from easyllm.components import shipped
from easyllm.models.families import FAMILIES, family_named
from easyllm.preflight import machine
from easyllm.spec.model.dimensions import state_bytes
from easyllm.spec.problems import SpecError
from easyllm.spec.roles import Component
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import hints
from tests.models.small import SMALL
from tests.pages import (
    BLOCKS,
    FILES,
    GENERATED,
    OWN,
    README,
    ROOT,
    SHELL,
    TABLE,
    TEXTS,
    load_module,
    write_files,
)
from tests.pages import spans as code_spans

MODULE = re.compile(r"python -m easyllm [^\"`]*")
PLACEHOLDER = re.compile(r"\b(NAME|KEY|FOLDER|ELSEWHERE|STAGE|key=)|…")
"""What stands in a command for something of the reader's."""
RUN = "+recipe=smollm2_pipe"
SOURCE = "data.sources.conversations.path=conversations.tsv"
"""What the run RUN is in these tests."""
FILE_NAMES = ("data.info", "training.py", "inference.py")
"""Files whose names look like keys."""
GROUPS = ("model", "data", "parallelism", "hardware", "training", "export", "inference",
          "serving", "components", "smoke")  # fmt: skip


def commands() -> list[str]:
    """Every command of easyllm's in the pages that is whole; flags that ask Hydra, and sweeps,
    are run by test_readme.py."""
    shown = [line for block in BLOCKS if block.kind in ("bash", "shell", "")
             for line in block.text.replace("\\\n", "").splitlines()]  # fmt: skip
    found = [
        command
        for line in shown
        for command in ([line] if line.startswith("python -m easyllm ") else MODULE.findall(line))
    ]
    found += [span for _, span in code_spans() if MODULE.fullmatch(span)]
    skipped = (" -m ", " --cfg ", " --help", "model.pth")
    return list(dict.fromkeys(
        command.strip() for command in found
        if not PLACEHOLDER.search(command)
        and not any(word in command.removeprefix("python -m") for word in skipped)
    ))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of, and RUN, a run that looks finished."""
    folder = tmp_path_factory.mktemp("docs")
    write_files(folder)
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text('{"text": "One."}\n')
    (folder / "hosts").write_text("".join(f"node{n} slots=8\n" for n in range(8)))
    tokens = folder / "datasets/news_Baichuan-13B-Chat"
    tokens.mkdir(parents=True)
    (tokens / "part-00000.zstd.parquet").write_bytes(b"")
    export = folder / "RUN/export"
    export.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run = _checked(RUN, SOURCE, "stages=[]")
        runfile.save(dataclasses.replace(run, run_dir=str(folder / "RUN")), folder / "RUN/run.yaml")
    (export / "config.json").write_text(json.dumps(run.model.config))
    (export / "tokenizer.json").write_text("{}")
    (export / "tokenizer_config.json").write_text("{}")
    return folder


def _checked(*words: str) -> RunSpec:
    """The spec that the words of a command compose. Raises SpecError."""
    arguments = flags.parse(list(words))
    library = arguments.library
    overrides = complete(read(arguments.overrides, library, False), library)
    return check(compose(overrides, library), library)


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder is ``folder``; modules that are imported from it are forgotten."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(folder)):
            del sys.modules[name]


def test_the_pages_have_their_commands():
    assert len(commands()) > 50
    assert set(TABLE) <= set(commands())


@pytest.mark.parametrize("command", [c for c in commands() if "RUN" not in c])
def test_every_command_is_a_whole_spec(command, inside, monkeypatch):
    """As before its stages are started, but for the devices and packages of this machine."""
    monkeypatch.setattr(machine, "problems", lambda run: iter(()))
    try:
        run = _checked(*shlex.split(command)[3:])
    except SpecError as error:
        pytest.fail("\n".join(map(str, error.problems)))
    asked = re.search(r"stages=\[(.*?)\]", command)
    assert not asked or list(run.stages) == asked[1].split(",") * bool(asked[1])


@pytest.mark.parametrize("command", [c for c in commands() if "RUN" in c])
def test_every_command_of_a_run_composes(command, inside, capsys):
    words = shlex.split(command)[3:]
    words = [word for word in words if not word.startswith("stages=")]
    status = main([*words, "stages=[]"])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "nothing was started" in said.out


def test_every_yaml_block_composes(inside, capsys):
    named = {text: name for page in TEXTS.values() for name, text in OWN.findall(page)}
    for block in BLOCKS:
        if block.kind != "yaml":
            continue
        if block.text in named:
            stem = Path(named[block.text]).stem
            assert any(re.search(rf"[=/]{stem}\b", c) for c in commands()), f"nothing uses {stem}"
            continue
        Path("fragment.yaml").write_text(block.text, "utf-8")
        assert main(["fragment.yaml", "stages=[]"]) == 0, capsys.readouterr().err


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXTS[file]):
        name, _, anchor = target.partition("#")
        page = (file.parent / name).resolve() if name else file
        assert page.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", TEXTS[page], re.MULTILINE)), target


def test_every_page_is_in_the_index_and_in_the_readme():
    for toc in (ROOT / "docs/index.md", ROOT / "docs/stages/index.md"):
        listed = re.search(r"```{toctree}\n:hidden:\n\n(.*?)```", TEXTS[toc], re.DOTALL)
        assert listed
        beside = {str(f.relative_to(toc.parent).with_suffix("")) for f in FILES
                  if f.is_relative_to(toc.parent) and f != toc}  # fmt: skip
        beside = {name for name in beside if "/" not in name or name == "stages/index"}
        generated = {GENERATED.stem} if toc.parent == GENERATED.parent else set()
        assert set(listed[1].split()) == beside | generated
    for file in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{file.name})" in README or file.stem in ("index", GENERATED.stem)


def test_tests_that_are_named_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", "".join(TEXTS.values()))
    assert len(named) > 5
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{file}::{name}"


def test_files_and_modules_that_are_named_exist():
    for page, span in code_spans():
        if re.fullmatch(r"(easyllm|tests|benchmarks|recipes|conf|docs|requirements)/[\w./]+", span):
            assert (ROOT / span).exists() or "_build" in span, f"{page.name}: {span}"
        if re.fullmatch(r"easyllm(\.\w+)+\.[A-Z]\w+", span):
            module, _, name = span.rpartition(".")
            file = ROOT.joinpath(*module.split("."))
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            assert re.search(rf"\b{name}\b", file.read_text("utf-8")), f"{page.name}: {span}"


def known(key: str) -> bool:
    """Whether a dotted key exists in the spec, with whichever shipped component."""
    here: list[Any] = [RunSpec]
    for name in key.split("."):
        if name == "_target_":
            continue
        after: list[Any] = []
        for hint in here:
            arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
            for arm in arms if typing.get_origin(hint) not in (dict, typing.Literal) else [hint]:
                if typing.get_origin(arm) is dict:
                    after.append(typing.get_args(arm)[1])
            if hint is Any:
                after.append(Any)
            for cls in _classes(hint):
                if name in hints(cls):
                    after.append(hints(cls)[name])
        here = after
        if not here:
            return False
    return True


def _classes(hint: Any) -> Iterator[type]:
    for arm in (hint, *typing.get_args(hint)):
        if isinstance(arm, type) and issubclass(arm, Component):
            yield from shipped(arm)
        elif isinstance(arm, type) and dataclasses.is_dataclass(arm):
            yield arm


def test_keys_that_are_named_exist():
    pattern = re.compile(rf"~?((?:{'|'.join(GROUPS)})(?:\.(?:\w+|<name>|NAME))+)(=.*)?", re.DOTALL)
    found = 0
    for page, span in code_spans():
        for word in span.split():
            if (match := pattern.fullmatch(word)) and word not in FILE_NAMES:
                found += 1
                assert known(match[1].replace("<name>", "x")), f"{page.name}: {word}"
    assert found > 150


def test_messages_of_the_troubleshooting_page_are_in_the_code():
    texts = [
        node.value
        for file in (ROOT / "easyllm").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    page = TEXTS[ROOT / "docs/troubleshooting.md"]
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 50
    for message in messages:
        for part in filter(None, map(str.strip, message.split("…"))):
            assert any(part in text for text in texts), message


def test_groups_are_the_shipped_ones():
    found = set()
    for row in re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", "".join(TEXTS.values()), re.MULTILINE):
        group, options = row[0], row[1].split(", ")
        if (ROOT / "conf" / group).is_dir():
            found.add(group)
            assert sorted(options) == sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml"))
    assert found == {p.name for p in (ROOT / "conf").iterdir() if p.is_dir()} - {"recipe"}


def test_every_family_is_in_the_tests_under_the_names_given():
    (table,) = re.findall(
        r"^\| family \|.*?\n\n", TEXTS[ROOT / "docs/models.md"], re.MULTILINE | re.DOTALL
    )
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    assert {row[0].strip("`") for row in rows} == {type(family).__name__ for family in FAMILIES}
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row[-1])]
    assert sorted(names) == sorted(SMALL)
    for row in rows:
        for name in re.findall(r"`(\w+)`", row[-1]):
            family = family_named(SMALL[name]["model_type"])
            assert type(family).__name__ == row[0].strip("`")


def test_every_recipe_is_in_the_readme():
    for file in (ROOT / "recipes").glob("*.yaml"):
        assert re.search(rf"\b{file.stem}\b", README), file.stem


def test_memory_and_mfu_are_those_of_the_page():
    from easyllm.training.metrics.step_metrics import flops_per_token

    page = TEXTS[ROOT / "docs/measures.md"]
    run = _checked("+recipe=llama13b_pipe", "stages=[]")
    assert run.model.family
    shape = run.model.family.shape(run.model.config)
    assert f"{state_bytes(run, shape) / 1e9:.1f} GB in all" in page
    flops = flops_per_token(shape, shape.parameters, run.data.seq_len)
    assert f"takes {flops / 1e9:.1f} × 10^9 floating point" in page
    assert run.hardware.peak_tflops
    assert round(1880 * flops / (run.hardware.peak_tflops * 1e12), 2) == 0.5


def test_the_reference_has_every_key_with_its_meaning():
    keys = load_module(ROOT / "docs/keys.py")
    page = keys.page()

    def check(cls: type, prefix: str) -> None:
        for name, hint in hints(cls).items():
            if (group := keys.group_of(hint)) is not None:
                check(group, f"{prefix}{name}.")
            else:
                assert f"\n`{prefix}{name}`\n: " in page, f"{prefix}{name}"
                assert keys.docstrings(cls).get(name), f"{prefix}{name} has no docstring"

    check(RunSpec, "")
    for cls in shipped():
        assert f"### {cls.__name__}\n" in page
        for field in dataclasses.fields(cls):
            assert f"\n`{field.name}`\n: " in page
            assert keys.docstrings(cls).get(field.name), f"{cls.__name__}.{field.name}"


def test_shell_commands_are_whole():
    """They are run word for word by test_readme.py."""
    for line in SHELL:
        assert line.startswith(("python -m easyllm", "make ")), line
