"""The sources of models: a folder, the hub, a GGUF file, a file inside a package."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from easyllm import files
from easyllm.errors import Unusable, UserError, WrongValue
from easyllm.models import tensor_files
from easyllm.models.text_part import text_config

PACKAGE = "package:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FORMATS = (
    "give a folder in Hugging Face's format, a hub id, a .gguf file, or package:NAME/FILE.gguf"
)
MERGED = "export it with export.adapter=merged, and give that folder"
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""Configuration and tokenizer of a repository on the hub."""
NO_TOKENIZER = "no_tokenizer.txt"
"""The file in a converted folder without tokenizer that says why it has none."""
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""Weights of a repository on the hub; the first kind that it has is downloaded."""


def local(path: str) -> Path | None:
    """The file or folder that a model path means; None for a hub id.

    Raises UserError where a file, a folder or a package is meant but does not exist.
    """
    if path.startswith(PACKAGE):
        return _in_package(path)
    place = Path(path).expanduser()
    if place.exists():
        return place
    if path.endswith((".gguf", ".tiktoken")):
        raise Unusable(path, "no such file", FORMATS)
    if not HUB_ID.fullmatch(path):
        raise Unusable(path, "no such folder", FORMATS)
    return None


def problem(path: str) -> str | None:
    """What is wrong with a model path, as far as that is known without loading or downloading."""
    try:
        _checked(path)
    except Unusable as error:
        return error.what
    return None


def tokenizer_problem(path: str) -> str | None:
    """Why the tokenizer of a GGUF file cannot be made, as far as that is quickly known."""
    rule = _rule(path)
    return rule.what if isinstance(rule, Unusable) else None


def tokenizer_rule(path: str) -> str | None:
    """A description of the rule by which the text of a GGUF file's model becomes tokens; None for
    another format, whose tokenizer is used as it is, or where there is none."""
    rule = _rule(path)
    return rule if isinstance(rule, str) else None


def without_tokenizer(folder: Path) -> str | None:
    """Why a converted folder has no tokenizer, where it has none."""
    try:
        return (folder / NO_TOKENIZER).read_text("utf-8")
    except FileNotFoundError:
        return None


def _rule(path: str) -> str | Unusable | None:
    try:
        place = local(path)
    except Unusable:
        return None
    if place is None or place.suffix != ".gguf" or not place.is_file():
        return None
    from easyllm.models.gguf import header, vocabulary

    try:
        return vocabulary.rule_of(header.read(place, arrays=False))
    except Unusable as unusable:
        return unusable


def local_config(path: str) -> dict[str, Any] | None:
    """``config.json`` of a local folder, or its part about text; None where ``path`` is not a local
    folder.

    Raises UserError when the folder has none that can be read.
    """
    place = Path(path).expanduser()
    if path.startswith(PACKAGE) or not place.is_dir():
        return None
    return text_config(_config(place))


def folder(path: str, cache: Path, with_weights: bool = True, revision: str | None = None) -> Path:
    """A folder in Hugging Face's format that holds the model at ``path``.

    It has ``config.json``, the tokenizer's files and, unless ``with_weights`` is false, weights
    as safetensors or, where there are none, as ``.bin`` files. A hub id is downloaded, at
    ``revision`` or else its main branch, into the hub's own cache. A GGUF file is converted once,
    under a lock, into ``cache/<name>-<digest>/``. Raises UserError.
    """
    place = _checked(path)
    if place is None:
        place = _downloaded(path, revision, WEIGHTS if with_weights else ())
    elif place.is_file():
        return _converted(place, cache)
    if with_weights and tensor_files.adapter_only(place):
        raise Unusable(path, tensor_files.ALONE, MERGED)
    if with_weights and not tensor_files.paths(place):
        raise Unusable(
            path,
            f"has no weights: no {tensor_files.SINGLE}, {tensor_files.PICKLED} or index of several",
            "give a folder that has them, or model.init=random",
        )
    return place


def commit(hub_id: str, revision: str | None = None) -> str:
    """The commit of a model on the hub at ``revision``, by default its main branch.

    Its small files are downloaded as well. If the hub does not answer, the commit is taken from the
    hub's cache on this machine, as of the last download. Raises UserError if neither has it.
    """
    return _downloaded(hub_id, revision).name


def snapshot(hub_id: str, revision: str) -> Path | None:
    """The folder of the hub's cache with a model's files at ``revision``; None where it was not
    downloaded. It uses no network."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    home = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")
    try:
        found = (home / "refs" / revision).read_text("utf-8").strip()
    except OSError:  # a commit has no own entry
        found = revision
    place = home / "snapshots" / found
    return place if found and place.is_dir() else None


def _checked(path: str) -> Path | None:
    """The result of ``local``, if it can be read."""
    place = local(path)
    if place is None:
        return None
    if place.is_dir():
        _config(place)
    elif place.suffix != ".gguf":
        raise Unusable(path, "is neither a folder nor a .gguf file", FORMATS)
    elif importlib.util.find_spec("gguf") is None:
        raise Unusable(path, "reading GGUF needs the gguf package: pip install 'easyllm[gguf]'")
    else:
        from easyllm.models.gguf import header

        header.read(place, arrays=False)
    return place


def _config(place: Path) -> dict[str, Any]:
    file = place / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        if (place / "adapter_config.json").exists():
            raise Unusable(place, tensor_files.ALONE, MERGED) from None
        what = "has no config.json, so it is not a model in Hugging Face's format"
        raise Unusable(place, what, FORMATS) from None
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(place, f"its config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise Unusable(place, "its config.json does not hold a map of keys")
    return config


def _in_package(path: str) -> Path:
    """The file behind ``package:NAME/FILE``, found without importing the package."""
    name, _, file = path.removeprefix(PACKAGE).partition("/")
    if not (name.isidentifier() and file):
        raise Unusable(path, "must be written package:NAME/FILE, e.g. package:my_model/a.gguf")
    spec = importlib.util.find_spec(name)
    if spec is None:
        distribution = name.replace("_", "-")
        raise Unusable(path, f"{name} is not installed: pip install {distribution}")
    homes = [Path(home) for home in spec.submodule_search_locations or ()]
    for home in homes:
        if (home / file).exists():
            return home / file
    suffix = Path(file).suffix or ".gguf"
    carried = sorted(
        str(found.relative_to(home)) for home in homes for found in home.rglob(f"*{suffix}")
    )
    there = f"it carries {', '.join(carried)}" if carried else f"it carries no {suffix} file"
    raise Unusable(path, f"{name} has no {file}; {there}")


def _downloaded(hub_id: str, revision: str | None, weights: Iterable[str] = ()) -> Path:
    """The folder of the hub's cache with the small files of a model and the first of ``weights``
    that it has."""
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetched(*patterns: str) -> Path:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*patterns]))

    try:
        place = fetched(*SMALL_FILES)
        # the indexes are small files: .bin files are needed only where there are no safetensors
        for pattern in weights:
            place = fetched(pattern)
            if tensor_files.paths(place) and any(place.glob(pattern)):
                break
        return place
    except RevisionNotFoundError:
        raise WrongValue(
            "model.revision", revision, f"{hub_id} has no such branch, tag or commit on the hub",
            f"give one that https://huggingface.co/{hub_id}/commits/main lists, or leave it out "
            "for the newest",
        ) from None  # fmt: skip
    except GatedRepoError:
        terms = f"accept its terms on https://huggingface.co/{hub_id}, then set HF_TOKEN"
        raise Unusable(hub_id, "a gated repository", terms) from None
    except RepositoryNotFoundError:
        what = "no such folder here and no such model on the hub"
        raise Unusable(hub_id, what, FORMATS) from None
    except HFValidationError as error:
        raise Unusable(hub_id, f"no such folder here, and no hub id: {error}", FORMATS) from None
    except (OSError, httpx2.HTTPError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        at = f", and its cache here holds no {revision}" if revision else ""
        what = f"no such folder here, and the hub does not answer{at} ({why})"
        raise Unusable(hub_id, what, FORMATS) from None


def _converted(file: Path, cache: Path) -> Path:
    """The folder that holds the model of a GGUF file; made if it does not exist yet."""
    from easyllm.models.gguf import CONVERSION

    identity = files.stable_hash([file.name, files.fingerprint(file), CONVERSION])
    target = cache / f"{file.stem}-{identity}"
    if not target.exists():
        with files.file_lock(cache / f".{target.name}.lock"):
            if not target.exists():
                print(
                    f"converting {file.name} to Hugging Face's format, once; kept in {target}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                with files.atomic_dir(target) as temporary:
                    _convert(file, temporary)
    return target


def _convert(file: Path, temporary: Path) -> None:
    """Write model and tokenizer of a GGUF file into ``temporary``. Raises UserError.

    If the tokenizer cannot be made, the reason is written instead: the model can still be trained
    with another tokenizer, given by ``data.tokenizer.path``.
    """
    from easyllm.models.gguf import header, model, tokenizer

    found = header.read(file)
    try:
        tokenizer.convert(found, temporary)
    except UserError as error:
        (temporary / NO_TOKENIZER).write_text(str(error), "utf-8")
    model.convert(found, temporary)
