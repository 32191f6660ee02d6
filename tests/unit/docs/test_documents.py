"""What the documents say of the code is held against the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from aggregator.strategies import STRATEGIES, make_strategy

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])


def test_every_setting_stands_in_the_configuration_page_with_its_default() -> None:
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "scripts" / "settings_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.with_tables(page) == page, "run: python scripts/settings_table.py"


@pytest.mark.parametrize("document", ["README.md", "docs/strategies.md"])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_is_called_exact_or_approximate(document: str, name: str) -> None:
    row = re.search(rf"^\| `{name}`.*\|$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None
    assert row[0].rstrip(" |").endswith("exact" if make_strategy(name).exact else "approximate")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert missing == []
