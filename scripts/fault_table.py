"""Write the table of faults of docs/reliability.md from the tests that bring them about.

    python scripts/fault_table.py [--check]

Which tests there are, pytest says. A test brings about what its marker ``fault`` names, and what stands in the id of
its case; tests/catalogue.toml has every line, and the reasons for those that no test brings about.
"""

from __future__ import annotations

import io
import re
import sys
import tomllib
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
CATALOGUE = ROOT / "tests" / "catalogue.toml"
BEGINS, ENDS = "<!-- faults -->\n", "<!-- end of faults -->\n"

_LINE = re.compile(r"\b[FB]\d\d\b")


class Collector:
    """Notes which lines of the catalogue each test that pytest finds brings about."""

    def __init__(self) -> None:
        self.tests = defaultdict[str, dict[str, None]](dict)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Look at all that was found."""
        for item in session.items:
            test, _, case = item.nodeid.partition("[")
            named = {str(line) for marker in item.iter_markers("fault") for line in marker.args}
            for line in sorted(named | set(_LINE.findall(case))):
                self.tests[line][test] = None


def catalogue() -> tuple[dict[str, str], dict[str, str]]:
    """Return every line of the catalogue, and the reasons for those that no test brings about."""
    read = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return {**read["F"], **read["B"]}, read["reasons"]


def brought_about() -> dict[str, list[str]]:
    """Return, for each line, the tests that bring it about; each once, however many cases it has."""
    collector, said = Collector(), io.StringIO()
    with redirect_stdout(said):
        ended = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", str(ROOT / "tests")], [collector])
    if ended != pytest.ExitCode.OK:
        sys.exit(f"the tests cannot be collected:\n{said.getvalue()[-2000:]}")
    return {line: list(tests) for line, tests in collector.tests.items()}


def table() -> str:
    """Return the table as Markdown; exits with a sentence where a line has neither a test nor a reason, or both."""
    lines, reasons = catalogue()
    tests = brought_about()
    if wrong := sorted((lines.keys() - tests.keys() - reasons.keys()) | (tests.keys() - lines.keys())):
        sys.exit(f"neither a test nor a reason, or not in tests/catalogue.toml: {', '.join(wrong)}")
    if both := sorted(tests.keys() & reasons.keys()):
        sys.exit(f"both a test and a reason why there is none: {', '.join(both)}")
    rows = ["|  | what happens | shown by |", "| --- | --- | --- |"]
    for name, what in lines.items():
        shown = f"not tested: {reasons[name]}" if name in reasons else _cited(tests[name])
        rows.append(f"| {name} | {what} | {shown} |")
    return "\n".join(rows) + "\n"


def _cited(tests: list[str]) -> str:
    """Return one test by its name, and how many more there are."""
    path, _, test = tests[0].rpartition("::")
    more = "" if len(tests) == 1 else f" and {len(tests) - 1} more"
    return f"`{path.partition('::')[0]}` `{re.sub('^test_', '', test)}`{more}"


def written(document: str) -> str:
    """Return ``document`` with the table as it is now."""
    before, _, rest = document.partition(BEGINS)
    _, _, after = rest.partition(ENDS)
    return f"{before}{BEGINS}\n{table()}\n{ENDS}{after}"


def main() -> None:
    """Write the table into the document; with ``--check``, end with 1 where it is another one."""
    before = DOCUMENT.read_text(encoding="utf-8")
    after = written(before)
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(after, encoding="utf-8")
    elif after != before:
        sys.exit("the table of faults in docs/reliability.md is an old one: python scripts/fault_table.py")


if __name__ == "__main__":
    main()
