#!/usr/bin/env bash
# fastavro 1.13.1, zstandard 0.25.0, CPython 3.11 to 3.13: a file with the codec `zstandard` cannot be read or written though
# the package of that name is installed.
#
# Guessed: with the package `zstandard` installed, which is what the codec is called, fastavro packs and unpacks its blocks.
# Seen: ValueError, which asks for `backports.zstd`; `zstandard` is not looked for. Deflate, bzip2 and xz work as they are.
# This script fails once that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet fastavro==1.13.1 zstandard==0.25.0
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import io
import sys

import fastavro
import zstandard

assert sys.version_info < (3, 14), "Python has zstd of its own from 3.14 on"
assert zstandard.decompress(zstandard.compress(b"text")) == b"text"
schema = {"type": "record", "name": "R", "fields": [{"name": "text", "type": "string"}]}
for codec in ("null", "deflate", "bzip2", "xz"):
    sink = io.BytesIO()
    fastavro.writer(sink, schema, [{"text": "a"}], codec=codec)
    assert list(fastavro.reader(io.BytesIO(sink.getvalue()))) == [{"text": "a"}]
try:
    fastavro.writer(io.BytesIO(), schema, [{"text": "a"}], codec="zstandard")
except ValueError as error:
    print("zstandard:", error)
    assert "backports.zstd" in str(error), error
else:
    raise SystemExit("the codec works with the package zstandard now")
PYTHON
