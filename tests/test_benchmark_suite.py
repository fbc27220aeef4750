"""What the page of a benchmark says of the tests that ran before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report, run, suite
from benchmarks.suite import Suite

TESTS = """
import pytest

@pytest.mark.parametrize("backend", ["cpp", "cpp", "cuda"])
def test_passes(backend, record_property):
    record_property("backend", backend)

def test_fails_on_a_backend(record_property):
    record_property("backend", "cuda")
    assert False

def test_skips():
    pytest.skip("no device in /opt/somewhere/else")

@pytest.fixture
def broken():
    raise OSError

def test_errs(broken):
    pass
"""
QUICK = ("--shapes", "4x5", "--losses", "ce", "--providers", "eager", "--quick")


@pytest.fixture(scope="module")
def junit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pytest writes of tests that pass, fail, skip and break."""
    folder = tmp_path_factory.mktemp("tests")
    (folder / "test_made.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--junitxml=report.xml",
        "-p",
        "no:cacheprovider",
    ]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1
    return folder / "report.xml"


def test_outcomes_are_counted(junit: Path) -> None:
    found = Suite.of(junit)
    assert found.seconds > 0
    assert found == Suite(
        passed=3,
        failed=2,
        skipped=1,
        seconds=found.seconds,
        backends={"cpp": 2, "cuda": 1},
        failures=["test_made::test_fails_on_a_backend", "test_made::test_errs"],
        reasons={"no device in else": 1},
    )


def test_the_page_of_a_benchmark_has_them(junit: Path, tmp_path: Path) -> None:
    """And of one without them has nothing of an earlier one's."""
    page = tmp_path / "README.md"
    run.main([*QUICK, "--output", str(tmp_path), "--tests", str(junit)])
    first = page.read_text()
    assert "3 passed, 2 failed, 1 skipped" in first
    assert "passed on each backend: cpp 2, cuda 1." in first
    assert "* failed: test_made::test_errs\n* skipped, 1: no device in else\n" in first
    report.main([str(tmp_path)])
    assert page.read_text() == first
    run.main([*QUICK, "--output", str(tmp_path)])
    assert "## Tests" not in page.read_text()
    assert suite.read(tmp_path) is None


@pytest.mark.parametrize("text", [None, "no XML", "<testsuites></testsuites>"])
def test_what_is_no_report_is_refused_before_anything_is_measured(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "report.xml"
    if text is not None:
        given.write_text(text)
    with pytest.raises(SystemExit):
        run.main([*QUICK, "--output", str(tmp_path / "made"), "--tests", str(given)])
    assert "expected a report of pytest --junitxml, got" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
