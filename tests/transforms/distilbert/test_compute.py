"""What is chosen for a machine, and what is refused on it."""

import pytest
import torch

from distilbeam.transforms.distilbert.compute import Compute, choose_compute
from distilbeam.transforms.errors import SettingsError


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({}, "float32"),
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_compute(threads=3) == Compute("cpu", dtype, 3)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_takes_cuda_where_it_is(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    compute = choose_compute()
    assert (compute.device, compute.dtype) == ("cuda", dtype)
    assert choose_compute("cuda:1", "float32").device == "cuda:1"
    with pytest.raises(SettingsError, match="device='cuda:2'` is not here: this worker has 2 CUDA devices"):
        choose_compute("cuda:2")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_is_not_replaced_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        SettingsError, match=f"device='{device}'` is not here: this worker has 0 CUDA devices; use 'cpu'"
    ):
        choose_compute(device)


def test_float16_is_refused_on_the_cpu() -> None:
    with pytest.raises(SettingsError, match="dtype='float16'` needs a CUDA device; use 'bfloat16' or 'float32'"):
        choose_compute("cpu", "float16")


def test_int8_is_taken_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_compute(dtype="int8", threads=3) == Compute("cpu", "int8", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for instructions in ("avx512_vnni", "avx_vnni", "amx_int8"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=instructions: {name: True})
        assert choose_compute().dtype == "float32"


def test_int8_is_refused_where_torch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", missing)
    with pytest.raises(
        SettingsError, match="dtype='int8'` needs an x86-64 CPU with AVX2 and torch with oneDNN; use 'auto'"
    ):
        choose_compute("cpu", "int8")
