"""The pictures of docs/ can be drawn again."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "docs").exists():
    pytest.skip("no source tree here", allow_module_level=True)

from docs import pictures  # noqa: E402


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_picture(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    monkeypatch.setattr(pictures, "HERE", tmp_path)
    pictures.main([name])
    drawn = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")]
    assert drawn == [f"{name}.png"]
    assert (ROOT / "docs" / f"{name}.png").is_file()
