"""A notebook that is executed, as Jupyter does it."""

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
CELLS = [
    "from distilbeam.pipelines import classify, inspect",
    "classify(MODEL, input=INPUT, output=OUTPUT)",
    "inspect(OUTPUT, rows=2)",
    "classify(MODEL, input=INPUT, text='body', output=OUTPUT + '-2')",
    """
import apache_beam as beam
from distilbeam.transforms import Classify

with beam.Pipeline() as pipeline:
    rows = pipeline | beam.Create([beam.Row(text="a fine film")]) | Classify(MODEL)
    _ = rows | beam.Map(lambda row: print(row.text, row.label))
""",
]


def told(cell: Any) -> str:
    """All that stands below a cell, without colours."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts += [output.get("text", ""), data.get("text/plain", ""), *output.get("traceback", ())]
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(parts)).strip()


@pytest.mark.slow
def test_a_notebook_runs_jobs_and_pipelines(tmp_path: Path) -> None:
    names = {
        "MODEL": str(ROOT / "examples" / "distilbert-tiny-sst2"),
        "INPUT": str(ROOT / "examples" / "reviews.jsonl"),
        "OUTPUT": str(tmp_path / "out"),
    }
    head = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (head, *CELLS)])
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", allow_errors=True)
    client.execute(cwd=str(tmp_path))
    _, _, job, look, wrong, pipeline = notebook.cells

    for cell in (job, look, pipeline):
        assert not [output for output in cell.outputs if output.output_type == "error"], told(cell)
        assert "Traceback" not in told(cell)
    (shown, result) = job.outputs
    assert shown.output_type == "display_data", "the bar, empty now"
    assert result.output_type == "execute_result"
    assert re.search(r"300 rows, [\d,]+ tokens", result.data["text/html"])
    assert "<table" in look.outputs[-1].data["text/html"]
    (error,) = [output for output in wrong.outputs if output.output_type == "error"]
    assert (error.ename, "no column 'body'" in error.evalue) == ("InputError", True)
    assert "apache_beam" not in told(wrong)
    assert len(told(wrong).splitlines()) < 60
    assert re.fullmatch("a fine film (POSITIVE|NEGATIVE)", told(pipeline))
