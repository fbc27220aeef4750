"""Machine code is read without a GPU."""

from __future__ import annotations

import pytest

from benchmarks import sass


def test_names_are_read_as_they_were_written() -> None:
    mangled = "_ZN3lpl10row_kernelINS_7RowBodyI13__nv_bfloat16Lb1EEEEEvNS_4CallEib"
    assert sass.demangled(mangled) == "row_kernel<RowBody<__nv_bfloat16, true> >"
    assert sass.demangled("forward") == "forward"


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass.shutil, "which", lambda name: None)
    monkeypatch.setattr(sass.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="CUDA toolkit.*PyPI's nvidia-cuda-cuobjdump"):
        sass.tool("cuobjdump")
