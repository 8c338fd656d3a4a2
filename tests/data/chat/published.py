"""Published chat templates out of packages, on tokenizers that have the tokens they name."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDERS = {
    "trl": ("trl", "chat_templates"),
    "axolotl": ("axolotl", "utils/chat_templates/templates"),
}

LLAMA_CPP = "llama-cpp-python==0.3.36"
"""Its source distribution carries llama.cpp's collection of templates; 77 MB."""

TOKEN = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^<>\s]+｜>|<SPECIAL_\d+>|\[\|[a-z]+\|\]"
    r"|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|TOOL_CONTENT|ARGS|CALL_ID)\]"
    r"|<(?:\|turn|turn\||\|channel|channel\||\|tool_call|tool_call\||\|tool|tool\||\|tool_response"
    r"|tool_response\|)>|</?(?:start|end)_of_turn>|<seed:[a-z_]+>|\[e~\[|\]~b\]|\]~!b\["
)
"""Special tokens, by how templates of all families spell them."""

WORD = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")
"""Tokens of their own that are not special ones."""

ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|return|>", "<｜end▁of▁sentence｜>"),
    *("<|END_OF_TURN_TOKEN|>", "<seed:eos>", "<|end_of_text|>", "[e~[", "<|eot|>"),
    *("<SPECIAL_12>", "[|endofturn|]"),
)
"""The end-of-sequence token is the first of these that a template names, else ``<EOS>``."""


def template(package: str, name: str) -> str:
    """The text of a template that an installed package carries."""
    module, folder = FOLDERS[package]
    found = find_spec(module)  # without importing it
    assert found and found.submodule_search_locations, f"{package} is not installed: make setup"
    home = Path(found.submodule_search_locations[0])
    return (home / folder / f"{name}.jinja").read_text("utf-8")


@functools.cache
def llama_cpp() -> Path | None:
    """The folder of llama.cpp's templates, fetched once a machine; None without a registry."""
    folder = Path(tempfile.gettempdir()) / f"easyllm-tests-{LLAMA_CPP}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as temporary:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary]
            fetched = subprocess.run(
                [*pip, "--no-binary", "llama-cpp-python", LLAMA_CPP], check=False
            )
            if fetched.returncode:
                return None
            (archive,) = Path(temporary).glob("*.tar.gz")
            made = Path(temporary) / "templates"
            made.mkdir()
            with tarfile.open(archive) as tar:
                for member in tar:
                    if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                        content = tar.extractfile(member)
                        assert content
                        (made / Path(member.name).name).write_bytes(content.read())
            folder.mkdir(exist_ok=True)
            for file in made.iterdir():
                file.rename(folder / file.name)
    return folder


SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's vocabularies split a text, which Llama 3's differ from in numbers only."""


@functools.cache
def _vocabulary(like_gpt2: bool) -> str:
    made = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=like_gpt2)
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    made.pre_tokenizer = byte_level if like_gpt2 else pre_tokenizers.Sequence([split, byte_level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    # templates' own line breaks are among the merges, as they are in large vocabularies
    texts = [topics[name] for name in sorted(topics)[:30]] + ["\n\n\nA\n\n\n" * 30]
    made.train_from_iterator(texts, trainer)
    return str(made.to_str())


def tokenizer_for(text: str, like_gpt2: bool = False) -> Any:
    """A byte-level tokenizer with the tokens that a template names, and that template.

    It splits texts as Qwen's and Llama 3's do, or as GPT-2's.
    """
    special, words = set(TOKEN.findall(text)), set(WORD.findall(text))
    end = next((end for end in ENDS if end in text), "<EOS>")
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary(like_gpt2)),
        bos_token="<BOS>",
        eos_token=end,
        pad_token="<PAD>",
        unk_token="<UNK>",
        additional_special_tokens=sorted(special - {end}),
    )
    made.add_tokens(sorted(words))
    made.chat_template = text
    return made


TOOL = {
    "type": "function",
    "function": {
        "name": "find_weather",
        "description": "Find the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city"}},
            "required": ["city"],
        },
    },
}


def chat(turns: int, reasoning: bool = False, system: bool = False) -> list[dict[str, Any]]:
    """Questions with answers, in the form that ``chat.messages`` makes."""
    made: list[dict[str, Any]] = []
    if system:
        made.append({"role": "system", "content": "Be kind to all."})
    for number in range(turns):
        made.append({"role": "user", "content": f"Question number {number}, please?"})
        answer: dict[str, Any] = {
            "role": "assistant",
            "content": f"Answer number {number} is here.",
        }
        if reasoning:
            answer["reasoning_content"] = f"Thought number {number} was deep."
        made.append(answer)
    return made


def tool_chat(reasoning: bool = False) -> list[dict[str, Any]]:
    """Two questions, the first answered with the help of a tool."""

    def thought(words: str) -> dict[str, str]:
        return {"reasoning_content": words} if reasoning else {}

    function = {"name": "find_weather", "arguments": {"city": "Berlin north"}}
    call = {"type": "function", "id": "callid123", "function": function}
    result = {"role": "tool", "content": "sunny and warm", "tool_call_id": "callid123"}
    return [
        {"role": "user", "content": "How is the weather up there?", "tools": [TOOL]},
        {"role": "assistant", "content": "", "tool_calls": [call], **thought("I look it up.")},
        {**result, "name": "find_weather"},
        {"role": "assistant", "content": "It is sunny.", **thought("I have it now.")},
        {"role": "user", "content": "Thank you, and tomorrow?"},
        {"role": "assistant", "content": "Nobody knows.", **thought("No forecast there.")},
    ]
