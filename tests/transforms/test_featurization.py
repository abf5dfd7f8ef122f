"""Columns appended to record batches: order, nulls, rejects, and what stays untouched."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilbeam.transforms.encoder import Encoder
from distilbeam.transforms.errors import InputError, SettingsError
from distilbeam.transforms.featurization import FEATURES, FeatureSpec, document_texts, featurize, finish_vectors
from distilbeam.transforms.provenance import ROW, Provenance
from distilbeam.transforms.words import KnownWords
from tests.checkpoints import DIM, UNCASED_VOCABULARY, Checkpoints, hugging_face_ids, hugging_face_tokenizer

EVERYTHING = FeatureSpec(features=FEATURES)
PROVENANCE = Provenance("memory://in.jsonl", "split-1", text=("text",), id="id", sequence=2)
BAD = UNCASED_VOCABULARY.index("bad")


@pytest.fixture(scope="module")
def encoder(checkpoints: Checkpoints) -> Encoder:
    return Encoder.load(checkpoints.three_classes, device="cpu", dtype="float32", threads=1)


@pytest.fixture
def fresh(checkpoints: Checkpoints) -> Encoder:
    """An encoder that a test may break."""
    return Encoder.load(checkpoints.three_classes, device="cpu", dtype="float32", threads=1)


def texts(count: int, seed: int = 0) -> list[str]:
    """Random texts of 0 to 90 words, of which many are truncated."""
    random = np.random.default_rng(seed)
    words = ["the", "cat", "sat", "on", "good", "film", "hello", "naïve", "!", "中国"]
    return [" ".join(random.choice(words, int(random.integers(0, 90)))) for _ in range(count)]


def documents(texts: list[str | None], provenance: Provenance | None = PROVENANCE) -> pa.RecordBatch:
    batch = pa.record_batch(
        {
            "id": pa.array([100 + row for row in range(len(texts))], pa.int64()),
            "text": pa.array(texts, pa.string()),
            ROW: pa.array([7 + row for row in range(len(texts))], pa.int64()),
        },
        metadata={"theirs": "kept"},
    )
    return batch if provenance is None else provenance.attach(batch)


def by_id(batch: pa.RecordBatch) -> dict[int, dict[str, Any]]:
    return {row["id"]: row for row in batch.to_pylist()}


def assert_equal_features(ours: pa.RecordBatch, expected: pa.RecordBatch) -> None:
    """The rows of ``ours`` have the features that rows of the same id have in ``expected``."""
    theirs = by_id(expected)
    for key, row in by_id(ours).items():
        for name, value in row.items():
            if name == "embedding" and value is not None:
                np.testing.assert_allclose(value, theirs[key][name], atol=1e-5)
            elif name in ("score", "scores") and value is not None:
                assert value == pytest.approx(theirs[key][name], abs=1e-5)
            elif name != ROW:
                assert value == theirs[key][name], name


def break_model(encoder: Encoder, token: int = BAD) -> list[int]:
    """Make the model fail wherever a token is; returns the growing list of its calls' tokens."""
    calls: list[int] = []
    run = encoder.engine._encoder

    def breaking(packed: Any) -> torch.Tensor:
        calls.append(len(packed.ids))
        if bool((packed.ids == token).any()):
            raise RuntimeError("private words")
        return run(packed)

    encoder.engine._encoder = breaking  # type: ignore[assignment]
    return calls


def test_columns_their_types_and_their_order(encoder: Encoder) -> None:
    result = featurize(documents(texts(9)), EVERYTHING, encoder)
    labels = encoder.checkpoint.labels
    assert result.schema.remove_metadata() == pa.schema(
        {
            "id": pa.int64(),
            "text": pa.string(),
            ROW: pa.int64(),
            "embedding": pa.list_(pa.float32(), DIM),
            "label": pa.string(),
            "score": pa.float32(),
            "scores": pa.struct({label: pa.float32() for label in labels}),
            "input_ids": pa.list_(pa.int32()),
            "token_count": pa.int32(),
            "truncated": pa.bool_(),
        }
    )
    result.validate(full=True)


def test_features_are_those_of_hugging_face(encoder: Encoder, checkpoints: Checkpoints) -> None:
    from transformers import AutoModelForSequenceClassification

    batch = documents(texts(30))
    result = featurize(batch, EVERYTHING, encoder)
    tokenizer = hugging_face_tokenizer(checkpoints.three_classes)
    ids = hugging_face_ids(tokenizer, batch["text"].to_pylist(), 64)
    longer = hugging_face_ids(tokenizer, batch["text"].to_pylist(), 65)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints.three_classes).eval()
    for row, tokens, more in zip(result.to_pylist(), ids, longer, strict=True):
        with torch.inference_mode():
            output = model(torch.tensor([tokens]), output_hidden_states=True)
        probabilities = output.logits[0].softmax(0)
        assert row["input_ids"] == tokens
        assert row["token_count"] == len(tokens)
        assert row["truncated"] == (len(more) > 64)
        np.testing.assert_allclose(row["embedding"], output.hidden_states[-1][0].mean(0), atol=1e-5)
        assert row["label"] == model.config.id2label[int(probabilities.argmax())]
        assert row["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert list(row["scores"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
    assert 0 < sum(result["truncated"].to_pylist()) < 30


def test_one_pass_gives_all_features(fresh: Encoder) -> None:
    calls = break_model(fresh, token=-1)
    result = featurize(documents(texts(30)), EVERYTHING, fresh)
    assert sum(calls) == sum(result["token_count"].to_pylist())


def test_order_of_the_rows_does_not_matter(encoder: Encoder) -> None:
    batch = documents([*texts(40), None, "", " "])
    expected = featurize(batch, EVERYTHING, encoder)
    order = np.random.default_rng(3).permutation(batch.num_rows)
    shuffled = featurize(batch.take(pa.array(order)), EVERYTHING, encoder)
    assert shuffled["id"].to_pylist() == [100 + row for row in order]
    assert_equal_features(shuffled, expected)


def test_equal_input_gives_equal_output(encoder: Encoder) -> None:
    batch = documents([*texts(40), None])
    assert featurize(batch, EVERYTHING, encoder).equals(featurize(batch, EVERYTHING, encoder), check_metadata=True)


def test_a_slice_is_a_batch_of_its_own(encoder: Encoder) -> None:
    batch = documents([None, *texts(20), None])
    whole = featurize(batch, EVERYTHING, encoder)
    part = featurize(batch.slice(5, 17), EVERYTHING, encoder)
    assert part.num_rows == 17
    assert_equal_features(part, whole)


@pytest.mark.parametrize("provenance", [PROVENANCE, None])
def test_a_row_without_text_keeps_null_features(encoder: Encoder, provenance: Provenance | None) -> None:
    some = [None, "the cat", None, "", "film", None]
    result = featurize(documents(some, provenance), EVERYTHING, encoder)
    assert result["id"].to_pylist() == [100, 101, 102, 103, 104, 105]
    for name in EVERYTHING.columns:
        assert result[name].is_null().to_pylist() == [text is None for text in some], name
    present = pa.array([text is not None for text in some])
    filled = featurize(documents([text or "" for text in some], provenance), EVERYTHING, encoder)
    assert_equal_features(result.filter(present), filled)
    assert result["token_count"].to_pylist() == [None, 4, None, 2, 3, None]
    result.validate(full=True)


@pytest.mark.parametrize("some", [[], [None, None]])
@pytest.mark.parametrize("provenance", [PROVENANCE, None])
def test_no_texts_give_the_same_schema(encoder: Encoder, some: list[str | None], provenance: Provenance | None) -> None:
    result = featurize(documents(some, provenance), EVERYTHING, encoder)
    full = featurize(documents(["the"], provenance), EVERYTHING, encoder)
    assert result.schema.equals(full.schema)
    assert (result.num_rows, result["embedding"].null_count) == (len(some), len(some))
    assert result.schema.metadata == full.schema.metadata


def test_metadata_and_provenance_travel_on(encoder: Encoder) -> None:
    result = featurize(documents(["the cat"]), EVERYTHING, encoder)
    assert result.schema.metadata[b"theirs"] == b"kept"
    assert Provenance.of(result) == replace(PROVENANCE, models=(encoder.identity(EVERYTHING),))


def test_the_model_is_named_in_full(encoder: Encoder) -> None:
    identity = encoder.identity(EVERYTHING)
    assert json.loads(json.dumps(identity)) == identity
    assert (identity["id"], identity["revision"]) == (str(encoder.checkpoint.folder), None)
    assert len(identity["weights_sha256"]) == len(identity["tokenizer_sha256"]) == 64
    assert identity["settings"]["features"] == list(FEATURES)
    assert identity["compute"] == {"device": "cpu", "dtype": "float32", "threads": 1}


def test_a_batch_without_provenance_gets_none(encoder: Encoder) -> None:
    result = featurize(documents(["the cat"], None), EVERYTHING, encoder)
    assert Provenance.of(result) is None
    assert result.schema.metadata == {b"theirs": b"kept"}


def test_a_finished_batch_gets_empty_columns_and_needs_no_model(checkpoints: Checkpoints) -> None:
    encoder = Encoder.load(checkpoints.three_classes, device="cuda:99")
    batch = documents([], replace(PROVENANCE, finished=True, last=True))
    result = featurize(batch, EVERYTHING, encoder)
    assert result.schema.names == [*batch.schema.names, *EVERYTHING.columns]
    assert result.num_rows == 0
    assert Provenance.of(result) == Provenance.of(batch)
    assert encoder._engine is None


def test_tokenizing_loads_no_model(checkpoints: Checkpoints) -> None:
    encoder = Encoder.load(checkpoints.bare, device="cuda:99")
    result = featurize(documents(["the cat"]), FeatureSpec(("input_ids",)), encoder)
    assert result["token_count"].to_pylist() == [4]
    assert encoder._engine is None
    provenance = Provenance.of(result)
    assert provenance is not None
    assert [model["compute"] for model in provenance.models] == [None]


@pytest.mark.parametrize("name", EVERYTHING.columns)
def test_a_column_that_is_there_already_is_refused(encoder: Encoder, name: str) -> None:
    batch = documents(["the cat"]).append_column(name, pa.array([1]))
    with pytest.raises(SettingsError, match=f"has a column '{name}' already; set `prefix`"):
        featurize(batch, EVERYTHING, encoder)
    result = featurize(batch, replace(EVERYTHING, prefix="new_"), encoder)
    assert result.schema.names == [*batch.schema.names, *("new_" + column for column in EVERYTHING.columns)]


def test_a_text_column_is_needed(encoder: Encoder) -> None:
    batch = documents(["the cat"])
    with pytest.raises(InputError, match=r"no text column 'Texts'; of its 2 columns 'text' is named most like it$"):
        featurize(batch, replace(EVERYTHING, text=("Texts",)), encoder)
    with pytest.raises(InputError, match="the text column 'id' is of type int64; it must be a string"):
        featurize(batch, replace(EVERYTHING, text=("id",)), encoder)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_texts_of_every_string_type(kind: pa.DataType) -> None:
    values = ["a", None, "", "a", "中"]
    array = pa.array(values, pa.string())
    column = array.dictionary_encode() if pa.types.is_dictionary(kind) else array.cast(kind)
    assert document_texts(pa.record_batch({"t": column}), ["t"], " ").to_pylist() == values


def test_several_text_columns_are_joined() -> None:
    batch = pa.record_batch(
        {
            "a": pa.array(["1", None, "3", None, ""]),
            "b": pa.array(["x", "y", None, None, "z"], pa.large_string()),
            "c": pa.array(["!", None, "?", None, None]),
        }
    )
    assert document_texts(batch, ["a", "b", "c"], " - ").to_pylist() == ["1 - x - !", "y", "3 - ?", None, " - z"]
    assert document_texts(batch, ["c", "a"], "").to_pylist() == ["!1", None, "?3", None, ""]
    assert document_texts(batch.slice(1, 3), ["a", "b"], " ").to_pylist() == ["y", "3", None]


@given(
    rows=st.lists(st.lists(st.none() | st.text(max_size=3), min_size=3, max_size=3), min_size=1, max_size=12),
    separator=st.sampled_from(["", " ", "--"]),
)
def test_joined_texts_of_any_rows(rows: list[list[str | None]], separator: str) -> None:
    batch = pa.record_batch(
        {name: pa.array(column) for name, column in zip("abc", zip(*rows, strict=True), strict=True)}
    )
    batch = batch.cast(pa.schema({name: pa.string() for name in "abc"}))
    expected = [None if row == [None] * 3 else separator.join(text for text in row if text is not None) for row in rows]
    assert document_texts(batch, ["a", "b", "c"], separator).to_pylist() == expected


def test_text_columns_come_from_the_spec_then_the_reader(encoder: Encoder) -> None:
    batch = pa.record_batch({"a": ["the"], "b": ["cat"], "text": ["film"]})
    ids = FeatureSpec(("input_ids",))

    def read(batch: pa.RecordBatch, spec: FeatureSpec) -> list[str]:
        tokens = featurize(batch, spec, encoder)["input_ids"][0].as_py()
        return [UNCASED_VOCABULARY[token] for token in tokens[1:-1]]

    provenance = replace(PROVENANCE, text=("a", "b"), separator=" ! ", id=None)
    assert read(batch, ids) == ["film"]
    assert read(provenance.attach(batch), ids) == ["the", "!", "cat"]
    assert read(provenance.attach(batch), replace(ids, separator=" ")) == ["the", "cat"]
    assert read(provenance.attach(batch), replace(ids, text=("b",))) == ["cat"]


@pytest.mark.parametrize("bad", [0, 13, 31])
def test_a_row_that_breaks_the_model_becomes_a_reject(fresh: Encoder, bad: int) -> None:
    some: list[str | None] = ["the cat " * (row % 7) for row in range(32)]
    some[5] = None
    expected = featurize(documents(some), EVERYTHING, fresh)
    calls = break_model(fresh)
    some[bad] = "a bad café"
    result = featurize(documents(some), EVERYTHING, fresh)
    assert result["id"].to_pylist() == [100 + row for row in range(32) if row != bad]
    assert_equal_features(result, expected)
    assert len(calls) <= 2 * math.ceil(math.log2(31)) + 1
    provenance = Provenance.of(result)
    assert provenance is not None
    (reject,) = provenance.rejects
    assert (reject.stage, reject.error, reject.row, reject.id) == ("model", "RuntimeError", 7 + bad, str(100 + bad))
    assert (reject.length, reject.text) == (len("a bad café".encode()), None)
    assert "caf" not in reject.reason
    assert "private" not in reject.reason


def test_a_row_that_breaks_the_tokenizer_becomes_a_reject(fresh: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = fresh._tokenizer.encode

    class Panic(BaseException):
        pass

    def panicking(texts: list[str]) -> list[list[int]]:
        if any("naïve" in text for text in texts):
            raise Panic("private words")
        return encode(texts)

    some = ["the", "naïve", "cat", "naïve", "film"]
    expected = featurize(documents(some), EVERYTHING, fresh)
    monkeypatch.setattr(fresh._tokenizer, "encode", panicking)
    monkeypatch.setattr(fresh._tokenizer, "known_words", KnownWords())
    break_model(fresh, UNCASED_VOCABULARY.index("film"))
    result = featurize(documents(some), EVERYTHING, fresh)
    assert result["id"].to_pylist() == [100, 102]
    assert_equal_features(result, expected)
    provenance = Provenance.of(result)
    assert provenance is not None
    assert [(reject.stage, reject.error, reject.row) for reject in provenance.rejects] == [
        ("tokenize", "Panic", 8),
        ("tokenize", "Panic", 10),
        ("model", "RuntimeError", 11),
    ]


def test_a_row_whose_output_is_not_finite_becomes_a_reject(fresh: Encoder) -> None:
    some = ["the cat", "a bad film", "hello", "film " * 40]
    expected = featurize(documents(some), EVERYTHING, fresh)
    words = fresh.engine._encoder._words.clone()
    words[BAD] = torch.nan
    fresh.engine._encoder._words = words
    result = featurize(documents(some), EVERYTHING, fresh)
    assert result["id"].to_pylist() == [100, 102, 103]
    assert_equal_features(result, expected)
    provenance = Provenance.of(result)
    assert provenance is not None
    assert [(reject.error, reject.row) for reject in provenance.rejects] == [("NonFiniteError", 8)]


def test_rejects_join_those_of_the_stages_before(fresh: Encoder) -> None:
    from distilbeam.transforms.provenance import Reject

    earlier = Reject("read", "JSONDecodeError", "not JSON", row=3)
    break_model(fresh)
    result = featurize(documents(["the", "bad"], PROVENANCE.reject(earlier)), EVERYTHING, fresh)
    provenance = Provenance.of(result)
    assert provenance is not None
    assert [reject.row for reject in provenance.rejects] == [3, 8]


def test_all_rows_may_break(fresh: Encoder) -> None:
    break_model(fresh)
    result = featurize(documents(["bad", "bad bad", None]), EVERYTHING, fresh)
    assert result["id"].to_pylist() == [102]
    provenance = Provenance.of(result)
    assert provenance is not None
    assert len(provenance.rejects) == 2
    assert result.schema.equals(featurize(documents(["the"]), EVERYTHING, fresh).schema)


def test_without_provenance_a_broken_row_keeps_null_features(fresh: Encoder) -> None:
    break_model(fresh)
    result = featurize(documents(["the", "bad", "cat", None], None), EVERYTHING, fresh)
    assert result["id"].to_pylist() == [100, 101, 102, 103]
    for name in EVERYTHING.columns:
        assert result[name].is_null().to_pylist() == [False, True, False, True], name


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_normalization_cut_and_storage(encoder: Encoder, pooling: str) -> None:
    batch = documents([*texts(12), None])
    plain = FeatureSpec(("embedding",), pooling=pooling, normalize=False)
    vectors = np.array(featurize(batch, plain, encoder)["embedding"].to_pylist()[:12])
    cut = replace(plain, dimensions=7, normalize=True, embedding_dtype="float16")
    column = featurize(batch, cut, encoder)["embedding"]
    assert column.type == pa.list_(pa.float16(), 7)
    assert column.null_count == 1
    stored = np.array([[float(number) for number in row] for row in column.to_pylist()[:12]])
    expected = vectors[:, :7] / np.linalg.norm(vectors[:, :7], axis=1, keepdims=True)
    np.testing.assert_allclose(stored, expected, atol=5e-4)


def test_a_zero_vector_stays_zero() -> None:
    vectors = np.array([[0, 0, 3], [3, 4, 9]], dtype=np.float32)
    np.testing.assert_allclose(finish_vectors(vectors, 2, normalize=True), [[0, 0], [0.6, 0.8]])
    np.testing.assert_array_equal(finish_vectors(vectors, None, normalize=False), vectors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ("embeddings",)}, "`features` is 'embeddings'; it must be one of embedding, label"),
        ({"features": ()}, "name at least one of embedding"),
        ({"features": ("label", "label")}, "each once"),
        ({"pooling": "mena"}, "`pooling` is 'mena'; it must be one of mean, cls, max"),
        ({"embedding_dtype": "int8"}, "`embedding_dtype` is 'int8'; it must be one of float32, float16"),
        ({"dimensions": 0}, "`dimensions` must be a whole number from 1 to \\d+, not 0"),
        ({"max_length": 2}, "`max_length` must be a whole number from 3 to \\d+, not 2"),
        ({"text": ()}, "`text` names no column"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FeatureSpec(**({"features": ("embedding",)} | settings))


def test_settings_are_json() -> None:
    spec = FeatureSpec(("embedding", "label"), text=("title", "body"), normalize=True)
    settings = spec.settings("model", "float32")
    assert json.loads(json.dumps(settings)) == settings
    assert settings["model"] == "model"
    assert settings["text"] == ["title", "body"]


def test_the_model_of_a_batch_is_a_copy_of_nothing_private(encoder: Encoder) -> None:
    result = featurize(documents(["secret cat"]), EVERYTHING, encoder)
    assert b"secret" not in b"".join(result.schema.metadata.values())
    assert Path(encoder.checkpoint.id).is_dir()
