"""What messages say of settings, told from the source of the package."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import distilbeam
from distilbeam import transforms
from distilbeam.pipelines import job
from distilbeam.pipelines.options import spellings
from distilbeam.transforms.featurization import FeatureSpec

ROOT = Path(distilbeam.__file__).parent
# The command line's own words, and the demo's, which nobody reaches from Python.
OWN = ("cli.py", "options.py", "usage.py", "demo.py")
SOURCES = [path for part in ("transforms", "pipelines") for path in sorted((ROOT / part).resolve().rglob("*.py"))]
WORDS = "types|keep|pooling|prefix|incremental|since|dtype|device|threads|dimensions|nulls|separator|format|compression"
UNMARKED = re.compile(rf"\b(?:set|raise|change|with|give) (?:{WORDS})\b|(?<!-)\b(?:{WORDS})=")
IN_BACKTICKS = re.compile(r"`[^`]*`")


def settings() -> set[str]:
    names = {*spellings(), *job.run.__kwdefaults__, *FeatureSpec.__dataclass_fields__}
    return {name for name in names if "_" in name}


def all_names() -> set[str]:
    """Settings of the jobs and of all public transforms."""
    public = [getattr(transforms, name) for name in transforms.__all__]
    kinds = [kind for kind in public if not issubclass(kind, Exception)]
    taken = {name for kind in kinds for name in inspect.signature(kind).parameters}
    return taken | {*spellings(), *job.run.__kwdefaults__}


def prose(path: Path) -> list[tuple[int, str]]:
    """The sentences of a module that are no docstrings, with their lines; what is put into them stands as ``{}``."""
    tree = ast.parse(path.read_text())
    parts: set[int] = set()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            parts |= {id(each) for each in ast.walk(node)}
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.add(id(node.value))
            continue
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        if len(text.split()) >= 3:
            found.append((node.lineno, text))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(Path(*path.parts[-2:])))
def test_settings_in_messages_stand_between_backticks(path: Path) -> None:
    if path.name in OWN:
        return
    named = re.compile(rf"\b(?:{'|'.join(sorted(settings()))})\b|(?:{'|'.join(spellings().values())})\b(?!=)")
    wrong = [
        (line, text)
        for line, text in prose(path)
        if named.search(rest := IN_BACKTICKS.sub("", text)) or UNMARKED.search(rest)
    ]
    assert not wrong, "write a setting as `name` or `name='value'`, see transforms/errors.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(Path(*path.parts[-2:])))
def test_what_stands_between_backticks_in_a_message_is_a_setting(path: Path) -> None:
    known = all_names() | {"{}"}
    for _, text in prose(path):
        if path.name not in OWN and "\n" not in text:
            assert {found[1:-1].partition("=")[0] for found in IN_BACKTICKS.findall(text)} <= known, text
