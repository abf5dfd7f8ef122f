"""Two jobs of one process at the same time, and an encoder beside them."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.dataset as ds

from distilbeam.pipelines import embed
from distilbeam.pipelines.job import Summary
from distilbeam.transforms import Encoder


def test_summaries_of_two_jobs_and_an_encoder_stay_apart(model: str, tmp_path: Path) -> None:
    sizes = {"small": 40, "large": 400}
    for name, rows in sizes.items():
        lines = (json.dumps({"text": "a b c " * (number % 7 + 1)}) for number in range(rows))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    encoder = Encoder.load(model)

    def job(name: str) -> Summary:
        summary = embed(
            model, input=tmp_path / f"{name}.jsonl", output=tmp_path / name, split_bytes=500, dtype="float32"
        )
        assert summary is not None
        return summary

    with ThreadPoolExecutor(3) as pool:
        jobs = {name: pool.submit(job, name) for name in sizes}
        pool.submit(lambda: [encoder.embed(["a b c"] * 50) for _ in range(20)]).result()
        summaries = {name: each.result() for name, each in jobs.items()}
    for name, rows in sizes.items():
        summary = summaries[name]
        counted = ds.dataset(tmp_path / name / "features").to_table(["token_count"]).column(0).to_numpy().sum()
        assert (summary.rows, summary.tokens, summary.resumed) == (rows, counted, 0)
        assert summary.tokens_per_second is not None
        assert abs(summary.tokens_per_second * summary.seconds - counted) < 0.5, "tokens of this job alone"
        assert summary.padding == 0
