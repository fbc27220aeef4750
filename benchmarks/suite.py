"""What the test suite said on the machine that was measured, kept beside the measurements."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from .records import without_paths

FILE = "tests.json"


@dataclass(frozen=True)
class Suite:
    """Tests by outcome; those that passed also by the backend that they ran on."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    backends: dict[str, int]
    failures: list[str]
    reasons: dict[str, int]  # why tests were skipped

    @staticmethod
    def of(report: Path) -> Suite:
        """From what `pytest --junitxml` wrote; ValueError if it did not write that."""
        try:
            root = ElementTree.parse(report).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise ValueError(
                f"expected a report of pytest --junitxml, got {report}: {error}"
            ) from error
        cases = list(root.iter("testcase"))
        if not cases:
            raise ValueError(f"expected a report of pytest --junitxml, got no test in {report}")
        broken = [case for case in cases if _has(case, "failure", "error")]
        skips = [case for case in cases if _has(case, "skipped")]
        passed = [case for case in cases if not _has(case, "failure", "error", "skipped")]
        return Suite(
            passed=len(passed),
            failed=len(broken),
            skipped=len(skips),
            seconds=sum(float(suite.get("time", 0)) for suite in root.iter("testsuite")),
            backends=_counts(
                found.get("value", "")
                for case in passed
                for found in case.iter("property")
                if found.get("name") == "backend"
            ),
            failures=[f"{case.get('classname')}::{case.get('name')}" for case in broken],
            reasons=_counts(
                without_paths(found.get("message", ""))
                for case in skips
                for found in case.iter("skipped")
            ),
        )

    def markdown(self) -> Iterator[str]:
        """The lines of a section."""
        yield "## Tests"
        yield ""
        yield (
            f"{self.passed:,} passed, {self.failed:,} failed, {self.skipped:,} skipped "
            f"in {self.seconds / 60:.1f} minutes; passed on each backend: "
            f"{', '.join(f'{name} {count:,}' for name, count in self.backends.items()) or 'none'}."
        )
        yield ""
        yield from (f"* failed: {name}" for name in self.failures)
        yield from (f"* skipped, {count:,}: {reason}" for reason, count in self.reasons.items())
        yield ""


def write(suite: Suite | None, folder: Path) -> None:
    """Keeps it beside the measurements; None takes away what belongs to earlier ones."""
    if suite is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        (folder / FILE).write_text(json.dumps(asdict(suite), indent=1) + "\n")


def read(folder: Path) -> Suite | None:
    """What `write` kept."""
    path = folder / FILE
    return Suite(**json.loads(path.read_text())) if path.exists() else None


def _has(case: ElementTree.Element, *outcomes: str) -> bool:
    return any(case.find(outcome) is not None for outcome in outcomes)


def _counts(names: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
