"""Micro-batches: every row once, the budget kept, equal lengths side by side."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distilbeam.transforms.batching import micro_batches

_lengths = st.lists(st.integers(1, 64) | st.integers(1, 4), max_size=80)


@given(lengths=_lengths, budget=st.integers(1, 200))
def test_every_row_is_in_one_micro_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    batches = list(micro_batches(sizes, budget))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sizes[batch].sum() <= budget


@given(lengths=_lengths, budget=st.integers(1, 200))
def test_rows_come_longest_first_and_equal_ones_in_their_order(lengths: list[int], budget: int) -> None:
    order = [row for batch in micro_batches(np.array(lengths, dtype=np.int64), budget) for row in batch.tolist()]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])


@given(lengths=_lengths, budget=st.integers(1, 200))
def test_no_micro_batch_could_take_the_next_row(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    batches = list(micro_batches(sizes, budget))
    for batch, following in itertools.pairwise(batches):
        assert sizes[batch].sum() + sizes[following[0]] > budget
