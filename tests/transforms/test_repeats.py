"""Rows of equal tokens are found and computed once, with the results of a run over all of them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilbeam.transforms.encoder import Encoder, Outputs
from distilbeam.transforms.featurization import FEATURES, FeatureSpec, featurize
from distilbeam.transforms.metrics import Live, counting
from distilbeam.transforms.provenance import ROW, Provenance
from distilbeam.transforms.tokenization import Tokens
from tests.checkpoints import UNCASED_VOCABULARY, Checkpoints

EVERYTHING = FeatureSpec(features=FEATURES)
BAD = UNCASED_VOCABULARY.index("bad")


_rows = st.lists(st.lists(st.sampled_from([0, 1, 2, 255, 256, 1 << 24]), max_size=4).map(tuple), max_size=12)


@settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(rows=_rows)
def test_rows_of_equal_tokens_are_found(rows: list[tuple[int, ...]]) -> None:
    ids = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    found = Tokens(ids, offsets, np.zeros(len(rows), np.bool_)).first_equal()
    expected = [rows.index(row) for row in rows]
    if found is None:
        assert expected == list(range(len(rows)))
    else:
        assert found.dtype == np.int64
        assert found.tolist() == expected != list(range(len(rows)))


class Panic(BaseException):
    """Like a panic of the Rust tokenizer, no Exception."""


class Spied:
    """An encoder that breaks at some texts, and the rows that its model got through."""

    def __init__(self, folder: str) -> None:
        self.encoder = Encoder.load(folder, device="cpu", dtype="float32", threads=1, token_budget=24)
        self.rows: list[tuple[int, ...]] = []
        encode, run = self.encoder._tokenizer.encode, self.encoder.engine._encoder

        def encoding(texts: list[str]) -> list[list[int]]:
            if any("\x07" in text for text in texts):
                raise Panic
            return encode(texts)

        def running(packed: Any) -> torch.Tensor:
            if bool((packed.ids == BAD).any()):
                raise RuntimeError
            starts = packed.starts.tolist()
            self.rows += [tuple(row.tolist()) for row in np.split(packed.ids.numpy(), starts[1:])]
            return run(packed)

        self.encoder._tokenizer.encode = encoding  # type: ignore[method-assign, assignment]
        self.encoder.engine._encoder = running  # type: ignore[assignment]

    def outputs(self, texts: list[str]) -> Outputs:
        self.rows.clear()
        with counting(Live()) as live:
            outputs = self.encoder.outputs(pa.array(texts, pa.string()), EVERYTHING)
        self.counted = live.read()
        return outputs


@pytest.fixture(scope="module")
def spied(checkpoints: Checkpoints) -> Spied:
    return Spied(checkpoints.three_classes)


_words = st.sampled_from(["the", "The", "cat", "good  film", "hello", "bad", "\x07", "cat " * 70, "cat " * 71])
_texts = st.lists(_words, max_size=4).map(" ".join)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(pool=st.lists(_texts, min_size=1, max_size=8, unique=True), data=st.data())
def test_repeats_change_nothing_but_the_work(spied: Spied, pool: list[str], data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokens, "first_equal", lambda _: None)
        expected = spied.outputs(texts)
    counted = spied.counted

    outputs = spied.outputs(texts)
    assert outputs.rows.tolist() == expected.rows.tolist()
    assert outputs.failed == expected.failed
    for name, ours, theirs in zip(EVERYTHING.names, outputs.columns, expected.columns, strict=True):
        if name in ("embedding", "scores"):
            ours, theirs = ours.flatten(), theirs.flatten()
        if name in ("embedding", "score"):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        elif name == "scores":
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
        else:
            assert ours.equals(theirs), name

    ids = outputs.columns[EVERYTHING.names.index("input_ids")].to_pylist()
    # A row of two tokens may also be a probe of the model.
    assert sorted(row for row in spied.rows if len(row) > 2) == sorted({tuple(row) for row in ids if len(row) > 2})
    for name in ("rows", "tokens", "read_tokens", *([] if outputs.failed else ["slots"])):
        assert spied.counted[name] == counted[name], name


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(pool=st.lists(_texts, min_size=1, max_size=8, unique=True), data=st.data())
def test_rows_have_what_their_text_has_alone(spied: Spied, pool: list[str], data: st.DataObject) -> None:
    alone = {text: spied.outputs([text]) for text in pool}
    texts = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=24))
    outputs = spied.outputs(texts)
    good = [row for row, text in enumerate(texts) if not alone[text].failed]
    assert outputs.rows.tolist() == good
    assert outputs.failed == {row: alone[text].failed[0] for row, text in enumerate(texts) if alone[text].failed}
    for position, row in enumerate(good):
        for name, ours, theirs in zip(EVERYTHING.names, outputs.columns, alone[texts[row]].columns, strict=True):
            if name == "embedding":
                np.testing.assert_allclose(ours[position].as_py(), theirs[0].as_py(), atol=1e-5)
            elif name in ("label", "input_ids", "token_count", "truncated"):
                assert ours[position] == theirs[0], name


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_repeats_are_rejected_each_with_its_own_line(spied: Spied, kind: pa.DataType) -> None:
    texts = pa.array(["bad", "the", None, "\x07", "bad", "the", "\x07", None, "bad"])
    column = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    batch = pa.record_batch({"text": column, ROW: pa.array(range(50, 59))})
    padded = pa.concat_batches([batch.slice(0, 2), batch]).slice(2)
    result = featurize(Provenance("memory://in", "split", text=("text",)).attach(padded), EVERYTHING, spied.encoder)
    assert result[ROW].to_pylist() == [51, 52, 55, 57]
    provenance = Provenance.of(result)
    assert provenance is not None
    assert [(reject.row, reject.stage, reject.error, reject.length) for reject in provenance.rejects] == [
        (50, "model", "RuntimeError", 3),
        (53, "tokenize", "Panic", 1),
        (54, "model", "RuntimeError", 3),
        (56, "tokenize", "Panic", 1),
        (58, "model", "RuntimeError", 3),
    ]
    assert result["embedding"][0] == result["embedding"][2]
    assert result["embedding"].is_null().to_pylist() == [False, True, False, True]
