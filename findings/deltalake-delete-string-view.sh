#!/usr/bin/env bash
# deltalake 1.6.6, pyarrow 25.0.1: DELETE and UPDATE rewrite a string column of a table as string_view, so the files of one table
# no longer have one Arrow schema.
#
# Guessed: what was written as `string` is rewritten as `string`, since the schema of the table has not changed.
# Seen: the file that DELETE writes says string_view in its ARROW:schema, the appended one string; so pyarrow's
# `concat_tables` of the files' tables raises ArrowInvalid. `DeltaTable.to_pyarrow_table` reads both.
# This script fails once that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet deltalake==1.6.6 pyarrow==25.0.1
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

rows = pa.table({"id": [1, 2], "text": pa.array(["a", "b"], pa.string())})
write_deltalake("table", rows)
DeltaTable("table").delete("id = 2")
write_deltalake("table", rows, mode="append")
tables = [pq.read_table(path) for path in DeltaTable("table").file_uris()]
kinds = sorted(str(table.schema.field("text").type) for table in tables)
print("types of `text` in the files:", kinds)
assert kinds == ["string", "string_view"], kinds
try:
    pa.concat_tables(tables)
except pa.ArrowInvalid as error:
    print("concat_tables:", str(error).splitlines()[0])
else:
    raise SystemExit("the files can be put together now")
assert DeltaTable("table").to_pyarrow_table().num_rows == 3
PYTHON
