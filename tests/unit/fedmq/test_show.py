"""What a command prints of a model: of a wide one a page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from golden.examples import RELEASED, RELEASED_OF_CLASSES, RELEASED_WIDE

from broker.messages import Coefficient, ReleasedModel, Scaling
from fedmq.model_file import Written
from fedmq.show import LARGEST, WHOLE_TABLE, print_summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Printed = Callable[[ReleasedModel], str]


def of_columns(d: int) -> ReleasedModel:
    """Return a model of ``d`` columns: the further on, the smaller its coefficient, and the larger its weight."""
    names = tuple(f"x{k}" for k in range(d))
    weights = np.arange(1.0, d + 1.0) * (-1.0) ** np.arange(d)
    scale = np.arange(1.0, d + 1.0) ** 2
    table = tuple(Coefficient(name, each) for name, each in zip(names, (weights / scale).tolist(), strict=True))
    return replace(
        RELEASED,
        features=names,
        weights=tuple(weights.tolist()),
        standardisation=Scaling((0.0,) * d, tuple(scale.tolist())),
        coefficients=table,
    )


@pytest.fixture
def printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return what is printed of a model."""

    def show(model: ReleasedModel) -> str:
        print_summary(model, Written(tmp_path / "model.json", None), {})
        return capsys.readouterr().out

    return show


def names_in(text: str, first: str) -> list[str]:
    """Return the names in the table whose heading begins with ``first``."""
    table = text.partition(first)[2].partition("\n\n")[0]
    return [line.split()[0] for line in table.splitlines()[1:]]


def test_a_table_that_fits_on_a_few_pages_is_printed_whole(printed: Printed) -> None:
    text = printed(of_columns(WHOLE_TABLE))
    assert names_in(text, "coefficient") == ["(intercept)", *(f"x{k}" for k in range(WHOLE_TABLE))]
    assert "are shown" not in text


def test_of_more_columns_the_largest_on_the_standardised_scale_are_printed(printed: Printed) -> None:
    d = 1234
    text = printed(of_columns(d))
    assert names_in(text, "coefficient") == ["(intercept)", *(f"x{k}" for k in range(d - 1, d - 1 - LARGEST, -1))]
    assert f"{-1 / 1234:.6g}" in text, "the coefficient, not the weight"
    assert "of 1,234 columns the 30 with the largest weights on the standardised scale are shown" in text
    assert len(text.splitlines()) < 60


def test_of_a_wide_model_without_coefficients_the_largest_weights_are_printed(printed: Printed) -> None:
    wide = replace(of_columns(500), coefficients=(), standardisation=Scaling((), ()))
    text = printed(wide)
    assert names_in(text, "coefficient")[:3] == ["(intercept)", "x499", "x498"]
    assert "with the largest weights on the columns' own scale are shown" in text
    assert names_in(printed(RELEASED_WIDE), "coefficient") == ["(intercept)", "age", "Größe", "bmi"]


def test_columns_that_were_taken_as_they_are_are_on_their_own_scale(printed: Printed) -> None:
    plain = replace(of_columns(500), standardisation=Scaling((0.0,) * 500, (1.0,) * 500))
    assert "on the columns' own scale are shown" in printed(plain)


def test_of_more_classes_a_wide_table_of_each_is_relative_to_the_first(printed: Printed) -> None:
    model = of_columns(500)
    first, second, third = (
        replace(each, weights=model.weights, coefficients=()) for each in RELEASED_OF_CLASSES.by_class
    )
    second = replace(second, weights=(*model.weights[:3], 1e6, *model.weights[4:]))
    wide = replace(
        RELEASED_OF_CLASSES, features=model.features, standardisation=Scaling((), ()), by_class=(first, second, third)
    )
    text = printed(wide)
    assert names_in(text, "class 2 against 1")[:2] == ["(intercept)", "x3"]
    assert names_in(text, "class 5 against 1")[:2] == ["(intercept)", "x0"], "all are the same: the first ones"
    assert f"{1e6 - model.weights[3]:.6g}" in text
