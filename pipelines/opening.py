"""Calls that open the features of an output in other libraries."""

from __future__ import annotations

from distilbeam.transforms.storage import filesystems

__all__ = ["features_of", "opening"]


def features_of(output: str) -> str:
    """Path or URL of the folder with the features of an output; nothing else lies in it."""
    return filesystems.join(output, "features")


def opening(output: str, format: str) -> dict[str, str]:
    """A call for each library that opens the features, by name of the library.

    Args:
        output: path or URL of an output folder.
        format: ``parquet`` or ``jsonl``.

    Examples:
        >>> opening("out", "parquet")["Polars"]
        "polars.read_parquet('out/features')"
    """
    folder = features_of(output)
    files = folder + "/*"
    if format == "jsonl":
        return {
            "DuckDB": f"FROM read_json({files!r})",
            "datasets": f"datasets.load_dataset('json', data_files={files!r})",
            "Spark": f"spark.read.json({folder!r})",
        }
    return {
        "pandas": f"pandas.read_parquet({folder!r})",
        "pyarrow": f"pyarrow.parquet.read_table({folder!r})",
        "Polars": f"polars.read_parquet({folder!r})",
        "DuckDB": f"FROM read_parquet({files!r})",
        "datasets": f"datasets.load_dataset('parquet', data_files={files!r})",
        "Dask": f"dask.dataframe.read_parquet({folder!r})",
        "Spark": f"spark.read.parquet({folder!r})",
    }
