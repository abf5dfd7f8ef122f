"""Systems without POSIX locks and limits of processes, such as Windows, played by taking the modules away."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WITHOUT = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, cwd=folder)


def test_all_can_be_imported(tmp_path: Path) -> None:
    names = "from distilbeam.transforms import Embed, Encoder, ReadDocuments, Rejects, WriteFeatures\n"
    done = run(names + "import distilbeam.transforms.distilbert.engine", tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_needs_them_says_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a b"]}), tmp_path / "in.parquet")
    reading = """
from distilbeam.transforms import SettingsError
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
try:
    plan_splits(ReadSettings(path="in.parquet"))
except SettingsError as error:
    print(error)
"""
    assert "run distilbeam on Linux or macOS, on Windows within WSL" in run(reading, tmp_path).stdout
