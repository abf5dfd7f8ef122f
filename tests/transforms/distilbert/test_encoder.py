"""The packed encoder against Hugging Face's DistilBertModel."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.encoder import PackedEncoder
from distilbeam.transforms.distilbert.linear import Linear, PrepackedLinear, RoundedLinear
from distilbeam.transforms.distilbert.packed import Packed
from distilbeam.transforms.distilbert.weights import Arithmetic, Weights
from tests.checkpoints import DIM, Checkpoints


def load(folder: str, dtype: torch.dtype = torch.float32, linear: type[Linear] = Linear) -> PackedEncoder:
    checkpoint = Checkpoint.open(folder)
    weights = Weights(checkpoint, torch.device("cpu"), Arithmetic(dtype, dtype, linear))
    return PackedEncoder(weights, checkpoint.config)


def run(encoder: PackedEncoder, rows: list[list[int]], multiple: int = 1) -> list[torch.Tensor]:
    """Hidden states of each row, [length, dim], all rows packed as they come."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.array([token for row in rows for token in row], dtype=np.int32)
    packed = Packed.build(ids, lengths, multiple=multiple)
    with torch.inference_mode():
        hidden = encoder(packed)
    assert len(hidden) == -(-len(ids) // multiple) * multiple
    return list(hidden[: len(ids)].split(lengths.tolist()))


def difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a.float() - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["bare", "relu", "masked_lm", "classifier", "half", "sentence"])
def test_hidden_states_are_hugging_faces(
    checkpoints: Checkpoints, ragged: list[list[int]], hugging_face: Any, name: str
) -> None:
    folder = getattr(checkpoints, name)
    theirs = hugging_face.hidden(folder, ragged)
    assert float(torch.cat(theirs).abs().max()) > 1
    for linear in (Linear, PrepackedLinear):
        assert difference(run(load(folder, linear=linear), ragged), theirs) < 1e-5


def test_what_fills_up_does_not_matter(checkpoints: Checkpoints, ragged: list[list[int]]) -> None:
    encoder = load(checkpoints.bare)
    expected = run(encoder, ragged)
    assert sum(map(len, ragged)) % 64
    assert difference(run(encoder, ragged, multiple=64), expected) < 1e-5


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled", "alone"])
def test_neighbours_do_not_matter(checkpoints: Checkpoints, ragged: list[list[int]], order: str) -> None:
    encoder = load(checkpoints.bare)
    expected = run(encoder, ragged)
    if order == "alone":
        assert difference([run(encoder, [row])[0] for row in ragged], expected) < 1e-5
        return
    index = {
        "ascending": sorted(range(len(ragged)), key=lambda i: len(ragged[i])),
        "descending": sorted(range(len(ragged)), key=lambda i: -len(ragged[i])),
        "shuffled": np.random.default_rng(1).permutation(len(ragged)).tolist(),
    }[order]
    ours = run(encoder, [ragged[i] for i in index])
    assert difference(ours, [expected[i] for i in index]) < 1e-5


@pytest.mark.parametrize("linear", [Linear, RoundedLinear])
def test_bfloat16_points_where_float32_does(
    checkpoints: Checkpoints, ragged: list[list[int]], linear: type[Linear]
) -> None:
    exact = torch.cat(run(load(checkpoints.bare), ragged))
    reduced = torch.cat(run(load(checkpoints.bare, torch.bfloat16, linear), ragged))
    assert (exact.dtype, reduced.dtype) == (torch.float32, torch.bfloat16)
    assert float(torch.cosine_similarity(exact, reduced.float(), dim=1).min()) > 0.999
    assert not torch.equal(exact, reduced.float())


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=30), multiple=st.integers(1, 9))
def test_a_pack_knows_where_its_rows_are(lengths: list[int], multiple: int) -> None:
    ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    packed = Packed.build(ids, np.array(lengths, dtype=np.int64), multiple=multiple)
    filling = [0] * (-sum(lengths) % multiple)
    assert packed.ids.tolist() == ids.tolist() + filling
    assert packed.positions.tolist() == [position for length in lengths for position in range(length)] + filling
    assert packed.offsets.tolist() == [sum(lengths[:row]) for row in range(len(lengths) + 1)]
    assert packed.starts.tolist() == packed.offsets.tolist()[:-1]
    assert packed.ids.dtype == packed.positions.dtype == packed.offsets.dtype == torch.int32
    assert packed.longest == max(lengths)
    assert [length for _, rows, length in packed.runs for _ in range(rows)] == lengths
    assert [start for start, _, _ in packed.runs] == [
        sum(rows * length for _, rows, length in packed.runs[:run]) for run in range(len(packed.runs))
    ]
    assert all(a[2] != b[2] for a, b in zip(packed.runs, packed.runs[1:], strict=False))


def test_hidden_states_have_one_row_per_token(checkpoints: Checkpoints) -> None:
    states = run(load(checkpoints.bare), [[2, 3], [2, 9, 3]])
    assert [tuple(state.shape) for state in states] == [(2, DIM), (3, DIM)]
