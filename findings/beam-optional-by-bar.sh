#!/usr/bin/env bash
# apache-beam 2.77.0 on Python 3.10 to 3.13: a field of a NamedTuple annotated `str | None` has another schema type than one
# annotated `Optional[str]`.
#
# Guessed: the two are the same type, so both are a nullable string, to schemas, Parquet and other languages.
# Seen: Optional[str] is a nullable STRING; `str | None` is `beam:logical:pythonsdk_any:v1` (a pickled Python value), without a
# warning, so that WriteToParquet without a schema raises NotImplementedError when the pipeline is built.
# This script fails once that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet apache-beam==2.77.0
"$folder/env/bin/python" - <<'PYTHON'
from typing import NamedTuple, Optional

import apache_beam as beam
from apache_beam.typehints.schemas import schema_from_element_type


class Row(NamedTuple):
    old: Optional[str]
    new: str | None


old, new = schema_from_element_type(Row).fields
print("Optional[str]:", old.type.WhichOneof("type_info"), "| str | None:", new.type.logical_type.urn)
assert old.type.WhichOneof("type_info") == "atomic_type"
assert new.type.logical_type.urn == "beam:logical:pythonsdk_any:v1", new
rows = beam.Pipeline() | beam.Create([Row("a", "b")]).with_output_types(Row)
try:
    rows | beam.io.WriteToParquet("out")
except NotImplementedError as error:
    print("WriteToParquet: NotImplementedError:", error)
else:
    raise SystemExit("the row can be written now")
PYTHON
