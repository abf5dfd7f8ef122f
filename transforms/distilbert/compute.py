"""What the model runs on, as this machine allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from distilbeam.transforms.errors import SettingsError

from .quantization import multiplies_int8
from .torch_threads import host_threads

__all__ = ["Compute", "choose_compute", "cpu_has_bfloat16"]


@dataclass(frozen=True, slots=True)
class Compute:
    """What the model runs on.

    Attributes:
        device: ``cpu`` or ``cuda[:n]``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
        threads: of the CPU.
    """

    device: str
    dtype: str
    threads: int


def choose_compute(device: str = "auto", dtype: str = "auto", threads: int | None = None) -> Compute:
    """Settle what is ``auto`` for this machine.

    CUDA where there is one; bfloat16 on GPUs since Ampere and on CPUs with bfloat16 instructions, float16 on older
    GPUs, float32 elsewhere; as many threads as torch sees fit. int8 is never chosen.

    Raises:
        SettingsError: an explicit device or dtype cannot be had here.
    """
    if device == "auto":
        # int8 is of CPUs alone, so it settles this as well.
        device = "cuda" if torch.cuda.is_available() and dtype != "int8" else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(device.partition(":")[2] or 0)
        if index >= count:
            raise SettingsError(
                f"`device={device!r}` is not here: this worker has {count} CUDA devices; use 'cpu' or 'auto'"
            )
    if dtype == "auto":
        if device == "cpu":
            dtype = "bfloat16" if cpu_has_bfloat16() else "float32"
        else:
            dtype = "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    if dtype == "float16" and device == "cpu":
        raise SettingsError("`dtype='float16'` needs a CUDA device; use 'bfloat16' or 'float32' on the CPU")
    if dtype == "int8" and not multiplies_int8(1):
        raise SettingsError("`dtype='int8'` needs an x86-64 CPU with AVX2 and torch with oneDNN; use 'auto' here")
    return Compute(device=device, dtype=dtype, threads=threads or host_threads())


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
