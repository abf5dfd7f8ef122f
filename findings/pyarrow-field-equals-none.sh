#!/usr/bin/env bash
# pyarrow 25.0.1: comparing a field with None raises where a data type, a schema or a table says that they differ.
#
# Guessed: `pa.field(...) == None` is False, as for any other object of Python and for pyarrow's own types, so that
# `known.get(name) != field` is a safe way to ask whether a field is new.
# Seen: AttributeError ('NoneType' object has no attribute 'field'), for None alone: `pa.field(...) == 5` is False, and so are
# `pa.int64() == None` and `pa.schema([]) == None`.
# This script fails once that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pyarrow==25.0.1
"$folder/env/bin/python" - <<'PYTHON'
import pyarrow as pa

for other in (pa.int64(), pa.schema([]), pa.table({"a": [1]})):
    print(type(other).__name__, "== None:", other == None)  # noqa: E711
    assert (other == None) is False  # noqa: E711
try:
    print("Field == None:", pa.field("a", pa.int64()) == None)  # noqa: E711
except AttributeError as error:
    print("Field == None: AttributeError:", error)
else:
    raise SystemExit("a field can be compared with None now")
PYTHON
