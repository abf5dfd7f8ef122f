"""The id of a split stands for what is read, and for nothing else."""

import pickle
from dataclasses import fields, replace

from distilbeam.transforms.input.splits import Part, Split

PART = Part("a.jsonl", "jsonl", 100, "v1")
SPLIT = Split((PART,), 0, 1, b"schema", 100)


def test_id_is_the_same_everywhere() -> None:
    assert pickle.loads(pickle.dumps(SPLIT)).id == SPLIT.id
    assert replace(SPLIT, ordinal=3, splits=9, size=5).id == SPLIT.id
    assert len(SPLIT.id) == 32


def test_id_changes_with_every_property_of_a_part_and_with_the_schema() -> None:
    other = Part("b.jsonl", "text", 101, "v2", "gzip", 1, 50, (("lang", "en"),), 7)
    changed = [replace(SPLIT, parts=(replace(PART, **{f.name: getattr(other, f.name)}),)) for f in fields(Part)]
    changed += [replace(SPLIT, schema=b"other"), replace(SPLIT, parts=(PART, PART))]
    assert len({SPLIT.id, *(split.id for split in changed)}) == len(changed) + 1


def test_rows_are_known_where_a_footer_has_counted_them() -> None:
    def rows(*parts: tuple[str, int | None]) -> int | None:
        found = tuple(replace(PART, format=format, start=2, stop=stop) for format, stop in parts)
        return replace(SPLIT, parts=found).rows

    assert rows(("arrow", 5)) == rows(("parquet", 5)) == 3
    assert rows(("arrow", 5), ("parquet", 4)) == 5
    for unknown in (("arrow", None), ("avro", None), ("jsonl", 5), ("text", 5)):
        assert rows(("arrow", 5), unknown) is None
