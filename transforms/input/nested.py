"""Fields of structs, named by paths such as ``review.body``; a column whose own name holds the dots goes before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "add_nested",
    "find_path",
    "hint",
    "know_nested",
    "mark_nested",
    "nest",
    "nested_paths",
    "roots",
    "without_marks",
]

_KEY = b"distilbeam.nested"

Path = tuple[str, ...]


def find_path(schema: pa.Schema, name: str) -> tuple[Path, pa.DataType] | None:
    """The fields that lead to a value inside of structs, and its type; None where the name is no such path.

    Example:
        >>> find_path(pa.schema([("review", pa.struct([("body", pa.string())]))]), "review.body")
        (('review', 'body'), DataType(string))
    """
    if "." not in name or name in schema.names:
        return None
    return _find(schema, name)


def _find(fields: Iterable[pa.Field], name: str) -> tuple[Path, pa.DataType] | None:
    for field in fields:
        if field.name == name:
            return (name,), field.type
        if pa.types.is_struct(field.type) and name.startswith(f"{field.name}."):
            found = _find(field.type, name[len(field.name) + 1 :])
            if found is not None:
                return (field.name, *found[0]), found[1]
    return None


def roots(schema: pa.Schema, names: Iterable[str]) -> list[str]:
    """The columns of a file that hold these names, each once: themselves, or those that their paths begin with."""
    there = frozenset(schema.names)
    found: dict[str, None] = {}
    for name in names:
        if name in there:
            found[name] = None
        elif (path := find_path(schema, name)) is not None:
            found[path[0][0]] = None
    return list(found)


def add_nested(batch: pa.RecordBatch, names: Iterable[str]) -> pa.RecordBatch:
    """The batch with a column for each name that is a path into its structs; null where a struct on the way is."""
    for name in names:
        if (found := find_path(batch.schema, name)) is not None:
            (root, *inner), _ = found
            column = batch.column(batch.schema.get_field_index(root))
            for step in inner:
                column = pc.struct_field(column, [column.type.get_field_index(step)])
            batch = batch.append_column(name, column)
    return batch


def know_nested(
    names: Iterable[str], known: dict[str, dict[pa.DataType, str]], schemas: Iterable[tuple[str, pa.Schema]]
) -> dict[str, Path]:
    """Adds the columns that are asked for by a path to those that are known; gives their paths.

    Args:
        names: the columns that are asked for.
        known: the types of each column of the files, each with the first file that has it.
        schemas: the schemas of the files, each with the first file that has it.
    """
    schemas = list(schemas)
    paths: dict[str, Path] = {}
    for name in [name for name in names if name not in known]:
        for url, schema in schemas:
            if (found := find_path(schema, name)) is not None:
                paths.setdefault(name, found[0])
                known.setdefault(name, {}).setdefault(found[1], url)
    return paths


def mark_nested(field: pa.Field, path: Path) -> pa.Field:
    """The column of a plan with the path that leads to it in JSON lines, which have no schema of their own."""
    return field.with_metadata({_KEY: "\0".join(path)})


def nested_paths(schema: pa.Schema) -> dict[str, Path]:
    """The paths of the columns that have one."""
    return {
        field.name: tuple(field.metadata[_KEY].decode().split("\0"))
        for field in schema
        if field.metadata and _KEY in field.metadata
    }


def without_marks(schema: pa.Schema) -> pa.Schema:
    """The schema without these paths."""
    return pa.schema([field.remove_metadata() if field.metadata else field for field in schema])


def nest(schema: pa.Schema, paths: Mapping[str, Path]) -> pa.Schema:
    """The schema with structs in place of the columns that have paths; a struct that is itself a column has them.

    Example:
        >>> nest(pa.schema([("n", pa.int64()), ("a.b", pa.string())]), {"a.b": ("a", "b")}).field("a").type
        StructType(struct<b: string>)
    """
    plain = [field for field in schema if field.name not in paths]
    own = {field.name for field in plain}
    tree: dict[str, object] = {}
    for name, path in paths.items():
        if path[0] in own or name not in schema.names:
            continue
        node = tree
        for step in path[:-1]:
            node = node.setdefault(step, {})  # type: ignore[assignment]
        node.setdefault(path[-1], schema.field(name).type)
    return pa.schema([*plain, *(pa.field(name, _type(node)) for name, node in tree.items())])


def _type(node: object) -> pa.DataType:
    if not isinstance(node, dict):
        return node
    return pa.struct([(name, _type(inner)) for name, inner in node.items()])


def hint(name: str, types: Mapping[str, Collection[pa.DataType]], tell: bool) -> str:
    """A sentence on the struct that a name points into, or is, if it is one.

    Args:
        name: a column that is not there, or no text.
        types: the types of the columns that are there.
        tell: whether the names of fields may be told, which inside of JSON lines belong to a document.
    """
    root = next((column for column in types if name == column or name.startswith(f"{column}.")), None)
    struct = next((kind for kind in types.get(root or "", ()) if pa.types.is_struct(kind)), None)
    if root is None or struct is None:
        return ""
    if not tell:
        return f"; {root!r} is a struct, whose fields are named as in '{root}.FIELD'"
    names = [f"{root}.{field.name}" for field in struct]
    return f"; {root!r} is a struct with the fields {', '.join(map(repr, names[:10]))}" + ("..." if names[10:] else "")
