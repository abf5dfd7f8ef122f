"""What a figure was measured on, without which it means nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe", "sentence"]

# The first that the CPU has says what it computes with.
_ISAS = (
    ("AMX", ("amx_bf16", "amx_int8", "amx_tile")),
    ("AVX512-bf16", ("avx512_bf16",)),
    ("AVX512-VNNI", ("avx512_vnni",)),
    ("AVX512", ("avx512f", "avx512_f")),
    ("AVX-VNNI", ("avx_vnni",)),
    ("AVX2", ("avx2",)),
    ("SVE", ("sve",)),
    ("NEON", ("asimd", "neon")),
)
_PACKAGES = ("distilbeam", "apache-beam", "tokenizers", "transformers", "sentence-transformers", "openvino")


def describe() -> dict[str, Any]:
    """The machine and the versions, as JSON.

    ``cpu`` (name), ``isa`` (what matrix products use), ``cores`` (that this process may use), ``memory_gib``, ``gpu``
    (name or None), ``torch``, ``threads`` (torch's), ``python``, ``system``, ``packages`` (versions), ``commit`` (of
    the checkout, ``+`` with changes), ``load`` (mean load of the last minute: how busy the machine was before).
    """
    capabilities = dict(getattr(torch.cpu, "get_capabilities", dict)())
    return {
        "cpu": _cpu(),
        "isa": next((name for name, keys in _ISAS if any(capabilities.get(key) for key in keys)), "unknown"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def sentence(machine: dict[str, Any]) -> str:
    """One line for a table."""
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['isa']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"torch {machine['torch']} with {machine['threads']} threads; Python {machine['python']}; "
        f"load before: {machine['load']}"
    )


def _cpu() -> str:
    with_names = Path("/proc/cpuinfo")
    if with_names.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", with_names.read_text(), flags=re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        folder = Path(__file__).parent
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
