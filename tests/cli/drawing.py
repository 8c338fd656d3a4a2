"""Wrong specs, drawn with a seed from the schema's own keys and the words of the command line."""

from __future__ import annotations

import dataclasses
import random
import re
import typing
from typing import Any

import yaml

from easyllm.cli.library import Library, shipped_folder
from easyllm.components import shipped
from easyllm.models.families import FAMILIES
from easyllm.spec.roles import Component
from easyllm.spec.run import STAGES, RunSpec
from easyllm.spec.schema import hints, target_of

LIBRARY = Library(shipped_folder())


def keys() -> dict[str, Any]:
    """Dotted keys of the spec, those of every shipped component among them, and their types."""
    found: dict[str, Any] = {}

    def walk(hint: Any, key: str) -> None:
        if key:
            found.setdefault(key, hint)
        for arm in (hint, *typing.get_args(hint)):
            if typing.get_origin(arm) is dict and typing.get_args(arm)[1] is not Any:
                walk(typing.get_args(arm)[1], f"{key}.mine")
            elif isinstance(arm, type) and issubclass(arm, Component):
                found[f"{key}._target_"] = str
                for cls in shipped(arm):
                    fields(cls, key)
            elif isinstance(arm, type) and dataclasses.is_dataclass(arm):
                fields(arm, key)

    def fields(cls: Any, key: str) -> None:
        for name, hint in hints(cls).items():
            if any(field.name == name for field in dataclasses.fields(cls)):
                walk(hint, f"{key}.{name}" if key else name)

    walk(RunSpec, "")
    for name in sorted(frozenset().union(*(family.config_keys for family in FAMILIES))):
        found[f"model.config.{name}"] = found[f"model.overrides.{name}"] = Any
    return found


KEYS = keys()
NAMES = sorted(KEYS)
TARGETS = [*sorted(target_of(cls) for cls in shipped()), "os.system", "easyllm.nope.X", "json.x"]
WORDS = sorted({cls.__name__.lower() for cls in shipped()})
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 16, 64, 128, 512, 4096, -1, -7, 10**9, 10**18, 10**30, 0.0, -0.5,
           0.5, 1.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]  # fmt: skip
TEXTS = ["", " ", "x", "true", "null", "1e3", "695e0514", "1_0", "x" * 300, "é" * 200,
         "a/" * 3000, "a/b", "../x", "~nobody-here/x", "a b", "a:b", "\x1b[31mred\x1b[0m",
         "\u202etxt", "\x00", "\ud800", "\n", "${nope}", "${seed}", "${", "${oc.env:NOPE}",
         "${model}", "???", "/dev/null", "/proc/nope/x", "notes.txt", "chat.jsonl", "own", "broken",
         "odd", "number.yaml", "package:nope/x", "package:json/x.gguf", "package:", "memory://x",
         "nope://x", "x.gguf", "no/such", "re:(", "*", "{", "[", "'", '"', "a,b", "=", "cuda",
         "llama", "float32", "90m", "h100x8", "0.0.0.0", "::1", "not a host", "%s", "{x}", "../..",
         "日本語", "a\tb", ".", "-", "--help", "\\n", "$(x)"]  # fmt: skip

ODD = ["hydra.x=1", "hydra.run.dir=x", "hydra/launcher=x", "=5", "x", "--nope", "a=b=c", "1=2", "+",
       "~", "model@x=tiny", "x.yaml", "hydra=1", "model.=1", ".=1", "demo", "+recipe"]  # fmt: skip
FLAGS = [["--cfg", "jbo"], ["--info", "x"], ["-p", "model"], ["--cfg"], ["--resolve"],
         ["--config-dir"], ["--config-dir", "nope"]]  # fmt: skip
JUNK = ["\t", ":", "[", "- ", "{", "&a ", "*a", "!!x ", "? ", "\x00", "[" * 500, "%", "@", "'",
        "\n\n", "1: 2\n", "${"]  # fmt: skip
CONFIG = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
          "num_hidden_layers": 2, "num_attention_heads": 4,
          "max_position_embeddings": 4096}  # fmt: skip


class Draw:
    """Values and specs from one seeded generator."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def value(self, depth: int = 2) -> Any:
        """A plain value of any type."""
        pick = self.random.random()
        if pick < 0.12:
            return self.random.choice([None, True, False])
        if pick < 0.45:
            return self.random.choice(NUMBERS)
        if pick < 0.85 or not depth:
            return self.random.choice(TEXTS)
        if pick < 0.9:
            return [self.value(depth - 1) for _ in range(self.random.randrange(4))]
        if pick < 0.91:
            nested: Any = 1
            for _ in range(self.random.choice([20, 40, 90])):
                nested = [nested] if self.random.random() < 0.5 else {"a": nested}
            return nested
        return {self.name(): self.value(depth - 1) for _ in range(self.random.randrange(3))}

    def fitting(self, key: str) -> Any:
        """A value of a key's own type, out of its range perhaps."""
        if key.endswith("_target_"):
            return self.random.choice(TARGETS)
        text = str(KEYS[key])
        if "Literal" in text:
            args = list(re.findall(r"'([\w.]+)'|(?<=[\[ ])(\d)(?=[,\]])", text))
            return self.random.choice([a or int(b) for a, b in args] or ["x"])
        if isinstance(KEYS[key], type) and issubclass(KEYS[key], Component):
            return self.random.choice(WORDS)
        if "int" in text or "float" in text:
            return self.random.choice([n for n in NUMBERS if n == n])
        if "bool" in text:
            return self.random.choice([True, False])
        return self.value()

    def name(self) -> str:
        return self.random.choice([*TEXTS[:8], "path", "_target_", "mine", "lr", "0", "weight"])

    def key(self) -> str:
        """A dotted key, misspelt, too deep or too short now and then."""
        key = self.random.choice(NAMES)
        pick = self.random.random()
        if pick < 0.04:
            return key + ".x"
        if pick < 0.08 and len(key) > 3:
            at = self.random.randrange(len(key))
            return (
                key[:at] + self.random.choice(["", "x", ".", "_", "[0]", "/", "@", "$"]) + key[at:]
            )
        if pick < 0.12:
            return key.rpartition(".")[0] or key
        return key

    def given(self) -> tuple[str, Any]:
        key = self.key()
        fits = key in KEYS and self.random.random() < 0.7
        return key, self.fitting(key) if fits else self.value()

    def word(self) -> str:
        """One word of a command line."""
        pick = self.random.random()
        group = self.random.choice(["model", "data", "parallelism", "hardware", "recipe", "tracker",
                                    "engine", "smoke", "nope"])  # fmt: skip
        options = LIBRARY.options(group) or ["x"]
        if pick < 0.08:
            some = ",".join(self.random.choices([*options, "nope", "null", "''"], k=2))
            word = self.random.choice(["[{}]", "{}", "[[{}]]", "{{{}}}"]).format(some)
            return f"{self.random.choice(['', '+', '++', '~'])}{group}={word}"
        if pick < 0.13:
            return f"{self.random.choice(['', '+', '~'])}{group}={self.random.choice(options)}"
        if pick < 0.17:
            return "~" + self.random.choice([group, self.key(), "data.sources.python_docs"])
        if pick < 0.19:
            return self.random.choice(ODD)
        key, value = self.given()
        return f"{self.random.choice(['', '', '', '+', '++', '~'])}{key}={self.typed(value)}"

    def typed(self, value: Any) -> str:
        """A value as someone types it: often without the quotation marks that it needs."""
        if value is None or isinstance(value, bool):
            return str(value).lower().replace("none", "null")
        if isinstance(value, str):
            return self.random.choice(
                ["{}", "{}", "'{}'", '"{}"', "[{}]", "int({})", "{},1"]
            ).format(value)
        if isinstance(value, dict):
            return "{" + ",".join(f"{k}:{self.typed(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self.typed, value)) + "]"
        return repr(value)

    def stages(self) -> list[str]:
        some = [stage for stage in STAGES if self.random.random() < 0.3]
        return self.random.choice([[], [], some, some, [*some, "nope"], some[::-1]])

    def command_line(self) -> list[str]:
        """A recipe or none, its stages, and some words."""
        words = [self.word() for _ in range(self.random.choice([1, 1, 1, 2, 3]))]
        recipe = self.random.choice(["demo"] * 6 + ["qwen3_8b", "llama13b_pipe", ""])
        first = [f"+recipe={recipe}"] if recipe else []
        if self.random.random() < 0.1:
            words.append("+smoke=cpu")
        if self.random.random() < 0.03:
            words += self.random.choice(FLAGS)
        stages = self.random.choice([f"stages=[{','.join(self.stages())}]"] * 9 + ["stages=train"])
        return [*first, stages, *words]

    def file(self) -> str:
        """The text of a run.yaml."""
        tree: Any = {"stages": self.stages()}
        if self.random.random() < 0.7:
            source = {"_target_": "text", "path": "notes.txt"}
            tree |= {"hardware": {"device": "cpu"}, "data": {"sources": {"mine": source}}}
            tree |= {"model": {"init": "random", "config": dict(CONFIG)}}
        for _ in range(self.random.choice([1, 1, 2, 4])):
            key, value = self.given()
            at = tree
            *parents, last = key.split(".")
            for part in parents:
                at[part] = dict(at[part]) if isinstance(at.get(part), dict) else {}
                at = at[part]
            at[last] = value
        pick = self.random.random()
        if pick < 0.06:
            tree = self.value()
        text = yaml.safe_dump(tree, allow_unicode=False)
        if pick > 0.9:
            at = self.random.randrange(len(text) + 1)
            text = text[:at] + self.random.choice(JUNK) + text[at:]
        return text

    def recipe(self) -> str:
        """The text of a recipe of one's own, its defaults wrong more often than not."""
        entry = self.random.choice([
            "demo", "override /model: tiny", "override model: tiny", "model: tiny", "/model: tiny",
            "override /model: nope", "override /nope: x", "/tracker: wandb", "nope", "own", "5",
            "override /tracker: wandb", "[a]", "{a: b, c: d}", "null",
            "override /model: [tiny, qwen_7b]",
            "override /data: [openai, text]", "demo@x", "/recipe: demo", "override /model: null",
            "optional nope", "${x}", "override /hardware@x: cpu", "_self_",
        ])  # fmt: skip
        head = self.random.choice(["# @package _global_\n"] * 4 + ["", "# @package model\n"])
        listed = self.random.choice([f"defaults:\n- {entry}\n"] * 5 + [f"defaults: {entry}\n"])
        key, value = self.given()
        more = yaml.safe_dump({key.partition(".")[0]: value})
        return head + listed + self.random.choice(["", more])
