"""Whether the records of splits are one complete plan."""

import uuid
from dataclasses import replace

import pytest

from distilbeam.transforms.errors import OutputError
from distilbeam.transforms.output.accounting import check_records, first_lines
from distilbeam.transforms.output.records import SplitRecord
from tests.outputs import forget
from tests.plans import Plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(lines=21)


def test_lines_before_each_part() -> None:
    plan = Plan(files=2, lines=23, lines_per_part=5, parts_per_split=3)
    records = [record_of(plan, ordinal) for ordinal in range(len(plan.splits))]
    before = first_lines(records)
    for split in plan.splits:
        for position, part in enumerate(split.parts):
            assert before[split.ordinal, position] == part.start - 1


def record_of(plan: Plan, ordinal: int) -> SplitRecord:
    output = f"memory://{uuid.uuid4().hex}"
    record = plan.write(output, ordinal)
    forget(output)
    return record


def test_records_that_are_no_plan(plan: Plan) -> None:
    records = [record_of(plan, ordinal) for ordinal in range(3)]
    assert check_records(records[::-1]) == records
    cases = [
        ([], "no batch reached"),
        (records[:2], "1 of 3 splits did not arrive complete: 2"),
        ([*records, records[1]], "1 of 3 splits arrived more than once: 1"),
        ([*records[:2], replace(records[2], splits=4)], "several plans"),
        ([*records, replace(records[2], ordinal=3)], "not in a plan of 3"),
        ([*records[:2], replace(records[2], shards=())], "split 2 read"),
        ([*records[:2], replace(records[2], rejects_file=replace(records[2].rejects_file, rows=9))], "9 set aside"),
        ([*records[:2], replace(records[2], schema=(("id", "int64"),))], "different columns"),
        ([*records[:2], replace(records[2], schema=records[2].schema[::-1])], "their order"),
        ([*records[:2], replace(records[2], models=({**plan.model, "weights_sha256": "x"},))], "different models"),
        ([*records[:2], replace(records[2], models=())], "different models"),
        ([*records[:2], replace(records[2], writer={})], "written with different settings"),
        ([*records[:2], replace(records[2], reading="x")], "read with different settings"),
    ]
    for wrong, message in cases:
        with pytest.raises(OutputError, match=message):
            check_records(wrong)
    elsewhere = {**plan.model, "compute": {"device": "cuda"}, "version": "1"}
    assert check_records([*records[:2], replace(records[2], models=(elsewhere,))])
