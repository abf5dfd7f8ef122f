"""A memory that is too small for a micro-batch costs time, not rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.faults.jobs import MODEL
from tests.faults.table import FaultReport

# RLIMIT_AS makes the allocator of the real model fail; the limit lies above what the process has taken by then.
_CODE = """
import json, logging, resource, sys
import numpy as np
from distilbeam.transforms import Encoder

class Counting(logging.Handler):
    lines = []
    def emit(self, record):
        self.lines.append(record.getMessage())

logging.getLogger("distilbeam").addHandler(Counting())
logging.getLogger("distilbeam").setLevel(logging.INFO)
texts = [f"the film number {row} " + "good and bad parts " * (row % 12) for row in range(8000)]
expected = Encoder.load(sys.argv[1], device="cpu", dtype="float32", threads=1, token_budget=1024).embed(texts)
encoder = Encoder.load(sys.argv[1], device="cpu", dtype="float32", threads=1, token_budget=1 << 20)
encoder.embed(texts[:2])
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (int(sys.argv[2]) << 20),) * 2)
found = encoder.embed(texts)
refused = [line for line in Counting.lines if "out of memory" in line]
print(json.dumps({"refused": len(refused), "worst": float(np.abs(found - expected).max()), "rows": len(found)}))
"""


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_run_in_parts(fault_report: FaultReport) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    for megabytes in (260, 350, 450):
        command = [sys.executable, "-W", "ignore", "-c", _CODE, str(MODEL), str(megabytes)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        if done.returncode == 0:
            break
        # Too little for anything at all: then it ends with an error, neither killed nor with fewer rows.
        assert done.returncode == 1, done.stderr[-2000:]
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == 8000
    assert found["worst"] < 1e-5
    assert 1 <= found["refused"] <= 10, "at most once for each halving"
    fault_report.add(
        "too little memory for a micro-batch (RLIMIT_AS)",
        injected=found["refused"],
        extra_passes=found["refused"],
    )
