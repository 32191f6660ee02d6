"""Write the tables of settings in docs/configuration.md anew: ``python scripts/settings_table.py``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from aggregator.settings import AggregatorSettings
from broker.settings import ServiceSettings
from participant.settings import ParticipantSettings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def table(settings: type[ServiceSettings], *, without: set[str]) -> str:
    """Return the fields of ``settings`` as a Markdown table, those in ``without`` left out."""
    rows = [
        f"| `{name}` | {_default(field)} | {field.description} |"
        for name, field in settings.model_fields.items()
        if name not in without
    ]
    return "\n".join(["| setting | default | |", "| --- | --- | --- |", *rows])


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "-"
    shown = value.get_secret_value() if isinstance(value, SecretStr) else value
    return f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"


def with_tables(page: str) -> str:
    """Return ``page`` with the table between each pair of markers made anew."""
    shared = set(ServiceSettings.model_fields)
    tables = {
        "both": table(ServiceSettings, without=set()),
        "aggregator": table(AggregatorSettings, without=shared),
        "participant": table(ParticipantSettings, without=shared),
    }
    for name, text in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        page = pattern.sub(lambda found, text=text: f"{found[1]}{text}{found[2]}", page)  # type: ignore[misc]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
