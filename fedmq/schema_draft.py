"""The first draft of a schema, from what the columns of one table look like: text that a person goes on writing.

What a table cannot say is left to that person: units, what is allowed, which levels there are elsewhere. And of what it
can say only that is written which tells nothing of any one row, since the draft goes to all sites: levels that
enough rows have, shares in whole percents, and ranges of round numbers beyond the extremes (`round_range`).
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from typing import NamedTuple

from broker.schema import BINARY_WORDS, MISSING, OTHER
from fedmq.errors import CommandError
from participant.schema_file import LONGEST_NAME, parse_schema
from participant.sources.coding import SPLITS
from participant.sources.survey import MOST_WORDS, Column, Extremes, Survey
from participant.sources.table import shown

#: Different whole numbers up to which they are levels.
FEW_NUMBERS = 10

#: What a binary feature has, and the least that any levels are.
TWO = 2

#: Rows up to which whole numbers that are all different may still be measurements; from the second on they are not.
FEW_ROWS, MANY_ROWS = 10, 100

#: Levels that a draft lists by name.
MOST_LISTED = 20

#: Where the comments begin, so that they can be read as a column.
COMMENT_AT = 28

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_DATE = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{1,4}([ T].*)?")
_HEAD = """\
# The first draft of a feature schema, made from one table. What it cannot know is yours to say: the units, the ranges
# that the federation allows (those here are guesses), and the levels that other sites have. docs/data.md has all keys.
format = 1
"""


class _LeftOut(NamedTuple):
    name: str
    why: str


def draft(found: Survey, *, label: str, min_cell: int, header: Sequence[str] = ()) -> str:
    """Return a schema that the table fits of which ``found`` tells, as TOML with comments.

    Parameters
    ----------
    label : the column to be predicted.
    min_cell : rows that have a level before it is named.
    header : the columns' names, where the file has no header line.

    Raises
    ------
    CommandError
        If there is no such label, or nothing to predict it from.
    """
    by_name = {column.name: column for column in found.columns}
    if label not in by_name:
        raise CommandError(f"there is no column {label!r}: name the label with --label; there are {shown([*by_name])}")
    if not found.n_rows:
        raise CommandError("there are no rows: a schema is drafted from some")
    others = [column for column in found.columns if column.name != label]
    split = next((column for column in others if _is_split(column)), None)
    others = [column for column in others if column is not split]
    left_out = [_LeftOut(column.name, why) for column in others if (why := _why_left_out(column, found.n_rows))]
    unfit = {each.name for each in left_out}
    features = [_feature(column, found.n_rows, min_cell) for column in others if column.name not in unfit]
    if not features:
        raise CommandError(f"no column beside {label!r} looks like a feature: write the schema by hand")
    parts = [_HEAD if not header else f"{_HEAD}columns = [{', '.join(map(_text, header))}]\n"]
    parts.append(_label(by_name[label], found.n_rows, min_cell))
    parts += [] if split is None else [f"[split]\ncolumn = {_text(split.name)}\n"]
    if left_out:
        parts.append("# Left out:\n" + "".join(f"#   {_text(each.name)}: {each.why}\n" for each in left_out))
    text = "\n".join([*parts, *features])
    parse_schema(tomllib.loads(text), "the draft")
    return text


# --- what a column is ------------------------------------------------------------------------------


def _is_split(column: Column) -> bool:
    return bool(column.words) and not column.n_missing and set(column.words or ()) == set(SPLITS)


def _why_left_out(column: Column, n_rows: int) -> str:
    """Return why ``column`` is no feature; nothing if it is."""
    n = n_rows - column.n_missing
    if len(column.name) > LONGEST_NAME:
        return "its name is too long"
    if not n:
        return "it has no value in any row"
    if column.numbers is None:
        return _why_no_levels(column, n)
    return "all rows have different whole numbers, as keys have" if _is_key(column, column.numbers, n) else ""


def _why_no_levels(column: Column, n: int) -> str:
    """Return why the words of a column, which ``n`` rows have, are no levels; nothing if they are."""
    words = column.words
    if words is None or len(words) > n / 2:
        many = f"more than {MOST_WORDS} different words" if words is None else "a word of its own in most rows"
        hint = "; are some of its words no values? list them in missing_values" if column.is_mixed else ""
        return f"it has {many}, as keys, names and texts have{hint}"
    reasons = {
        f"{OTHER} and {MISSING} mean something else; write them without brackets": bool(
            {OTHER, MISSING} & words.keys()
        ),
        "it has dates; a model needs numbers, such as years since": all(map(_DATE.fullmatch, words)),
        "all rows have the same word": len(words) == 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _is_key(column: Column, numbers: Extremes, n: int) -> bool:
    if not (numbers.whole and column.all_differ and n > FEW_ROWS):
        return False
    return n >= MANY_ROWS or numbers.high - numbers.low < 2 * n


def _feature(column: Column, n_rows: int, min_cell: int) -> str:
    """Return the part of the file that ``column`` becomes."""
    words, n = column.words or {}, n_rows - column.n_missing
    plain = {word for group in BINARY_WORDS for word in group}
    few_numbers = column.numbers is not None and column.numbers.whole and TWO <= len(words) <= min(FEW_NUMBERS, n / 2)
    if words and {word.lower() for word in words} <= plain:
        lines, rule = [_line("kind", '"binary"')], "indicator"
    elif column.numbers is None or few_numbers:
        lines, rule = _levels(column, min_cell), "indicator"
    else:
        low, high = round_range(column.numbers.low, column.numbers.high)
        lines = [_line("unit", '""', "fill in"), _line("range", f"[{_number(low)}, {_number(high)}]", "a guess")]
        rule = "mean"
    if column.n_missing:
        share = f"{_percent(column.n_missing / n_rows)} of the cells have no value"
        lines.append(_line("missing", f'"{rule}"', share))
    return "".join([f"[features.{_key(column.name)}]\n", *lines])


def _levels(column: Column, min_cell: int) -> list[str]:
    """Return the lines of a column of levels: all by name if enough rows have each, else none is declared."""
    assert column.words is not None, "levels were counted"
    key = float if column.numbers is not None else None
    common = sorted((word for word, n in column.words.items() if n >= min_cell), key=key)
    n_rare = len(column.words) - len(common)
    if len(column.words) == TWO and not n_rare:
        return [_line("kind", '"binary"'), _line("levels", _list(common), "what stands for 0, and for 1")]
    kind = _line("kind", '"categorical"')
    if not n_rare and len(common) <= MOST_LISTED:
        return [
            kind,
            _line("levels", _list(common), "the first is what others are compared with; add those of other sites"),
        ]
    here = [*map(_text, common)] if len(common) <= MOST_LISTED else [f"{len(common)}"]
    rarer = [f"and {n_rare} rarer"] if n_rare else []
    return [kind, f"# levels are found at the sites; here: {', '.join(here)} {' '.join(rarer)}".rstrip() + "\n"]


def _label(column: Column, n_rows: int, min_cell: int) -> str:
    """Return the part of the file that says what is predicted."""
    words, numbers = column.words, column.numbers
    lines = ["[label]\n", _line("column", _text(column.name))]
    if column.n_missing:
        share = _percent(column.n_missing / n_rows)
        lines.append(f"# {share} of the rows have no label, and are refused: take them out\n")
    if numbers is not None and not (numbers.whole and numbers.low >= 0 and numbers.high <= 1):
        two = words is not None and len(words) == TWO and min(words.values()) >= min_cell
        lines.append(
            _values(sorted(words or (), key=float)) if two else _line("above", "0", "a guess: 1 above it, else 0")
        )
    elif numbers is None:
        lines.append(_values(_classes(column, min_cell)))
    return "".join(lines)


def _classes(column: Column, min_cell: int) -> list[str]:
    """Return the words of a label; raises `CommandError` where they are not for a draft."""
    words = column.words
    if words is None:
        raise CommandError(f"column {column.name!r} has more than {MOST_WORDS} different words: it is no label")
    if len(words) < TWO:
        raise CommandError(f"column {column.name!r} does not have two different words: it is no label")
    if min(words.values()) < min_cell:
        raise CommandError(
            f"column {column.name!r} has words in fewer than {min_cell} rows, which are not told: "
            "write the schema by hand, or give a smaller --min-cell"
        )
    return sorted(words)


def _values(words: Sequence[str]) -> str:
    return _line("values", f"{{ {', '.join(f'{_key(word)} = {place}' for place, word in enumerate(words))} }}")


# --- numbers ---------------------------------------------------------------------------------------


def round_range(low: float, high: float) -> tuple[float, float]:
    """Return a range of round numbers that has ``low`` and ``high`` inside: of 1, 2 and 5 times powers of ten, and 0.

    An end is no number that anybody has, unless it is 0: that end is 0 also of all columns that come within a tenth of
    their size of it, and tells of no row.
    """
    if low == high == 0.0:
        return 0.0, 1.0
    return (
        0.0 if 0.0 <= low <= high / 10.0 else _round_below(low),
        0.0 if low / 10.0 <= high <= 0.0 else -_round_below(-high),
    )


def _round_below(number: float) -> float:
    """Return the greatest round number below ``number``."""
    size = math.floor(math.log10(abs(number)))
    steps = [float(f"{digit}e{power}") for power in range(size - 1, size + 2) for digit in (1, 2, 5)]
    return max(step for step in (*steps, *(-step for step in steps), 0.0) if step < number)


# --- how it is written -----------------------------------------------------------------------------


def _line(key: str, value: str, comment: str = "") -> str:
    line = f"{key} = {value}"
    return f"{line:{COMMENT_AT}}  # {comment}\n" if comment else f"{line}\n"


def _list(levels: Sequence[str]) -> str:
    """Return a list of levels; whole numbers need no quotes."""
    numbers = all(re.fullmatch(r"0|-?[1-9]\d{0,15}", level) for level in levels)
    return f"[{', '.join(levels if numbers else map(_text, levels))}]"


def _text(text: str) -> str:
    """Return ``text`` as a TOML string, which is as JSON has it but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else _text(text)


def _number(number: float) -> str:
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)  # noqa: PLR2004 - exact


def _percent(share: float) -> str:
    """Return a share above 0 in whole percents, of which neither 0 nor 100 stands for any other."""
    return "under 1 %" if share <= 0.005 else "over 99 %" if 0.995 <= share < 1.0 else f"{round(100 * share)} %"  # noqa: PLR2004 - halves of a percent
