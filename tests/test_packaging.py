"""What is published: the wheel and the sdist hold real files and work away from the checkout; the lock is whole."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pyarrow.dataset
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCKS = [ROOT / "requirements.lock", ROOT / "deploy/docker/requirements.lock"]
FOLDERS = ("transforms", "pipelines", "examples")


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    finished = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, f"{words}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    return finished.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last commit, as anyone would get it."""
    folder = tmp_path_factory.mktemp("checkout")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    return folder


@pytest.fixture(scope="module")
def expected(checkout: Path) -> set[str]:
    """Files of the package by their installed names: all modules, and the examples that are data."""
    own = [path for path in (checkout / "src/distilbeam").iterdir() if path.is_file()]
    files = {f"distilbeam/{path.name}" for path in own}
    for folder in FOLDERS:
        for path in (checkout / folder).rglob("*"):
            if path.is_file() and (path.suffix == ".py") == (folder != "examples"):
                files.add(f"distilbeam/{path.relative_to(checkout).as_posix()}")
    return files


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """A wheel straight from the checkout."""
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "direct", cwd=checkout)
    (path,) = (checkout / "direct").iterdir()
    return path


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    """An sdist, beside the wheel that was built from it."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=checkout)
    (path,) = (checkout / "dist").glob("*.tar.gz")
    return path


def wheel_files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("distilbeam/")}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path, checkout: Path, expected: set[str]) -> None:
    assert "distilbeam/py.typed" in expected
    assert wheel_files(wheel) == expected
    archive = zipfile.ZipFile(wheel)
    for name in expected:
        assert archive.read(name) == (checkout / "src" / name).read_bytes()
    metadata = {name for name in archive.namelist() if not name.startswith("distilbeam/")}
    assert {name.split("/")[0].split("-")[0] for name in metadata} == {"distilbeam"}
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


@pytest.mark.slow
def test_the_sdist_holds_real_files_and_builds_the_same_wheel(sdist: Path, wheel: Path, expected: set[str]) -> None:
    top = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        names = set(archive.getnames())
    assert {f"{top}/src/{name}" for name in expected} <= names
    assert {f"{top}/LICENSE", f"{top}/README.md", f"{top}/pyproject.toml"} <= names
    (from_sdist,) = sdist.parent.glob("*.whl")
    assert wheel_files(from_sdist) == wheel_files(wheel)


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # The dependencies come from the environment of the tests; links inside it, such as to this checkout, do not.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", python, wheel, cwd=tmp_path)

    code = (
        "import distilbeam.pipelines, distilbeam.transforms, importlib.resources as r\n"
        "print(distilbeam.__version__, distilbeam.transforms.__file__, distilbeam.pipelines.__file__)\n"
        "print(*sorted(p.name for p in (r.files('distilbeam') / 'examples').iterdir()))"
    )
    imported, examples = run(python, "-c", code, cwd=tmp_path).splitlines()[-2:]
    version, *origins = imported.split()
    assert all(Path(origin).is_relative_to(site) for origin in origins)
    assert examples

    command = environment / "bin/distilbeam"
    assert version in run(command, "--version", cwd=tmp_path)
    assert "featurize" in run(command, "--help", cwd=tmp_path)
    run(command, "demo", cwd=tmp_path)
    reviews = (checkout / "examples/reviews.jsonl").read_text(encoding="utf-8").splitlines()
    features = pyarrow.dataset.dataset(tmp_path / "demo-output", format="parquet").to_table()
    assert features["id"].to_pylist() == [json.loads(review)["id"] for review in reviews]
    assert {label.lower() for label in features["label"].to_pylist()} == {"negative", "positive"}


def pins(lock: Path) -> dict[str, list[Requirement]]:
    """The locked requirements by name; one name has several where Python or the platform differ."""
    found: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^[^#\s].*(?= \\$)", lock.read_text(), flags=re.MULTILINE):
        requirement = Requirement(line)
        found.setdefault(requirement.name, []).append(requirement)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_lock_has_exact_versions_with_hashes_and_no_addresses(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"://|\bfile:|index-url|find-links| @ ", text)
    entry = re.compile(r"[a-z0-9._-]+==[^\s;]+( ; [^\\]+)? \\(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+(\n    #.*)*\n")
    entries = re.sub(r"\A(#.*\n)*", "", text)
    assert entry.sub("", entries) == ""


def test_the_lock_satisfies_every_dependency_and_extra() -> None:
    locked = pins(ROOT / "requirements.lock")
    for dependency in map(Requirement, requires("distilbeam") or []):
        versions = [str(next(iter(pin.specifier)).version) for pin in locked[dependency.name]]
        assert all(dependency.specifier.contains(version) for version in versions), (str(dependency), versions)


def test_the_workers_run_the_versions_that_are_tested() -> None:
    tested, shipped = ({(p.name, str(p.specifier)) for same in pins(lock).values() for p in same} for lock in LOCKS)
    assert shipped <= tested
