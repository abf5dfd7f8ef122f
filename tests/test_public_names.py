"""The public surface: a change here is a change for users and belongs in CHANGELOG.md."""

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

PUBLIC = {
    "distilbeam": [
        "__version__",
    ],
    "distilbeam.transforms": [
        "CheckpointError",
        "Classify",
        "DistilbeamError",
        "Embed",
        "Encoder",
        "FeatureSpec",
        "Featurize",
        "InputError",
        "OutputError",
        "OutputExistsError",
        "Prediction",
        "ReadDocuments",
        "RejectLimitError",
        "Rejects",
        "SettingsError",
        "Tokenize",
        "WriteFeatures",
    ],
    "distilbeam.pipelines": [
        "Inspection",
        "Preview",
        "Summary",
        "classify",
        "embed",
        "featurize",
        "inspect",
        "run",
        "tokenize",
    ],
}


def modules_after(statement: str) -> set[str]:
    """Names of all modules loaded by a fresh interpreter that runs only this statement."""
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", PUBLIC)
def test_all_names_exactly_the_public_ones(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == PUBLIC[module]


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in PUBLIC.items() for n in names])
def test_every_public_name_can_be_imported(module: str, name: str) -> None:
    # A submodule of the same name would take its place once it is imported.
    package = importlib.import_module(module)
    for found in pkgutil.iter_modules(package.__path__):
        if found.name != "__main__":
            importlib.import_module(f"{module}.{found.name}")
    namespace: dict[str, object] = {}
    exec(f"from {module} import {name}", namespace)
    assert not inspect.ismodule(namespace[name])
    assert name in dir(package)


@pytest.mark.parametrize("name", PUBLIC["distilbeam.transforms"])
def test_every_public_name_is_documented(name: str) -> None:
    named = getattr(importlib.import_module("distilbeam.transforms"), name)
    written = vars(named).get("__doc__") if isinstance(named, type) else named.__doc__
    # A dataclass without a docstring gets its signature for one.
    assert written
    assert not written.startswith(f"{name}(")


@pytest.mark.parametrize("name", sorted({name for names in PUBLIC.values() for name in names} - {"__version__"}))
def test_every_public_name_is_in_the_changelog(name: str) -> None:
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    assert re.search(rf"`{name}\b", text)


def test_transforms_load_no_torch() -> None:
    loaded = modules_after(f"from distilbeam.transforms import {', '.join(PUBLIC['distilbeam.transforms'])}")
    assert "distilbeam.transforms.inference" in loaded
    assert "torch" not in loaded


def test_the_command_line_loads_neither_beam_nor_torch() -> None:
    loaded = modules_after("import distilbeam.pipelines.cli")
    assert "distilbeam.pipelines.cli" in loaded
    assert not loaded & {"apache_beam", "torch", "transformers"}
