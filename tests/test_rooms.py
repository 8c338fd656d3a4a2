"""The house: rooms import only downwards, and checking a spec loads nothing heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import easyllm
from easyllm.components import FACES, RENAMED, resolver, shipped
from easyllm.spec.schema import UnknownComponent, target_of

PACKAGE = Path(easyllm.__file__).parent
ORDER = (
    ("__main__",),
    ("cli",),
    ("smoke",),
    ("worker",),
    ("dispatcher",),
    ("preflight",),
    ("stages",),
    ("evaluation",),
    ("serving",),
    ("inference",),
    ("training",),
    ("parallelism",),
    ("data",),
    ("models",),
    ("tasks", "trackers"),
    ("launchers",),
    ("runfile",),
    ("components",),
    ("paths",),
    ("progress", "files", "printable", "signals"),
    ("errors", "heartbeat"),
    ("spec",),
)
"""From the top of the house to its ground; rooms of one floor do not know each other."""
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
HEAVY = ("torch", "transformers", "deepspeed", "pyarrow", "datasets", "fsspec", "numpy",
         "vllm", "fastapi", "uvicorn", "tokenizers", "safetensors", "rich", "pyspark",
         "pandas")  # fmt: skip


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "conf" not in p.parts)


def room(dotted: str) -> str:
    return dotted.split(".")[1] if "." in dotted else "easyllm"


def imports(file: Path) -> set[str]:
    """Every module of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # what an export carries finds its neighbour wherever it lies
            carried = file.parent == PACKAGE / "models" / "custom" and node.level == 1
            assert node.level == 0 or carried, f"{file}: relative import"
            module = f"easyllm.models.custom.{node.module}" if carried else node.module
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("easyllm.")}


def test_every_room_has_its_floor():
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in modules()}
    assert rooms - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_arrows_go_down(file):
    here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here == "__init__":
        assert not imports(file)
        return
    for name in imports(file):
        there = room(name)
        if there == here or there == "__version__":
            continue
        assert FLOOR[there] > FLOOR[here], f"{here} must not know {there} ({name})"


def dependencies() -> dict[str, set[str]]:
    """By module what it imports at run time: inside functions too, for type checkers alone not."""

    def nodes(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
                yield child
                yield from nodes(child)

    def name(file: Path) -> str:
        parts = ("easyllm", *file.relative_to(PACKAGE).with_suffix("").parts)
        return ".".join(parts).removesuffix(".__init__")

    files = {name(file): file for file in modules()}
    found = {}
    for module, file in files.items():
        imported: set[str] = set()
        for node in nodes(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                imported |= {one if one in files else node.module for one in whole}
        found[module] = (imported & files.keys()) - {module}
    return found


def test_no_module_imports_itself_through_others():
    """Modules without dependencies go, layer by layer; what is left imports in a circle."""
    left = dependencies()
    assert left["easyllm.data.tokenize"], "imports are found"
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    assert not left, "\n".join(f"{m} -> {sorted(i & left.keys())}" for m, i in left.items())


def test_files_and_folders_stay_small():
    long = {str(f): n for f in modules() if (n := len(f.read_text().splitlines())) > 350}
    assert not long
    folders = {file.parent for file in modules()}
    full = {str(f): n for f in folders if (n := len(list(f.glob("*.py")))) > 13}
    assert len(folders) > 30 and not full, "twelve modules beside __init__.py at most"


def test_a_target_that_has_moved_is_refused_with_its_new_name():
    for old, new in RENAMED.items():
        for cls in (cls for cls in shipped() if cls.__module__ == new):
            with pytest.raises(UnknownComponent, match=f"is now {target_of(cls)}"):
                resolver()(f"{old}.{cls.__name__}", cls)
    assert set(RENAMED.values()) <= set(FACES)


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that are loaded after ``code`` has run."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("face", [*FACES, "easyllm.stages.base"])
def test_faces_are_light(face):
    assert not loaded_by(f"import {face}") & set(HEAVY)


def test_stages_are_light():
    code = (
        "from easyllm.stages import load\nfrom easyllm.spec.run import STAGES\n"
        "for name in STAGES: load(name)"
    )
    assert not loaded_by(code) & set(HEAVY)


def test_checking_a_spec_is_light():
    code = (
        "from easyllm.__main__ import main\n"
        "assert main(['+recipe=demo', '+tracker=tensorboard', 'stages=[]']) == 0\n"
        "assert main(['+recipe=llama13b_zero', '+smoke=cpu', 'stages=[]']) == 0\n"
        "assert main(['+recipe=demo', 'model.pth=x']) == 2"
    )
    assert not loaded_by(code) & set(HEAVY)


def test_every_component_can_be_checked_lightly():
    """For every shipped ``_target_`` the walk reads its fields without its engine."""
    targets = [target_of(cls) for cls in shipped()]
    assert len(targets) > 10
    code = (
        "from easyllm.components import shipped\n"
        "from easyllm.spec import schema\n"
        "from easyllm.runfile import read_config\n"
        "for cls in shipped(): schema.hints(cls)\n"
        "read_config({'data': {'sources': {str(i): {'_target_': t} for i, t in "
        f"enumerate({targets!r})}}}}}})"
    )
    assert not loaded_by(code) & set(HEAVY)


def test_every_shipped_component_is_declared_in_a_face():
    """A component in a module that FACES lacks would not be offered in messages."""
    from easyllm.spec.roles import Component

    def below(cls: type) -> set[type]:
        return {c for sub in cls.__subclasses__() for c in {sub, *below(sub)}}

    assert shipped()
    found = {
        (cls.__module__, role.__name__)
        for role in Component.__subclasses__()
        for cls in below(role)
        if cls.__module__.startswith("easyllm.") and ".spec.roles." not in cls.__module__
    }
    assert found <= set(FACES.items())
