"""The folder of a model: its document as documented, written whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from golden.examples import (
    RELEASED,
    RELEASED_OF_A_TABLE,
    RELEASED_OF_CLASSES,
    RELEASED_WIDE,
    RELEASED_WITH_INFERENCE,
)

from fedmq import model_file
from fedmq.errors import CommandError, ModelNotWritten
from fedmq.model_file import check_out, document, write_model

if TYPE_CHECKING:
    from pathlib import Path

NEWER = replace(RELEASED, version=43)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Name a folder for a model that is not there yet."""
    return tmp_path / "model"


def version_in(folder: Path) -> int:
    """Read the version of the model in ``folder``, and check that there is nothing beside it."""
    assert [entry.name for entry in folder.iterdir()] == ["model.json"]
    version: int = json.loads((folder / "model.json").read_text())["version"]
    return version


def keys(value: Any) -> Any:
    """Return the keys of ``value``, all the way down; of a list those of its first entry."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


# --- the document ---------------------------------------------------------------------------------------

METRICS = dict.fromkeys(("n", "log_loss", "brier", "accuracy", "auc", "auc_tie_bound"))
LINE = dict.fromkeys(("name", "estimate", "std_error", "z", "p_value", "ci_low", "ci_high", "odds_ratio"))
STATISTICS = dict.fromkeys(
    [
        *("log_likelihood", "deviance", "null_deviance", "df_model", "df_residual", "effective_df"),
        *("aic", "bic", "lr_statistic", "lr_p_value", "pseudo_r2"),
    ]
)
COMPARED = {
    **dict.fromkeys(("name", "q", "df", "p_value", "i2")),
    "by_site": {"hospital-1": dict.fromkeys(("deviation", "std_error", "single_class"))},
}
PATH = dict.fromkeys(("l1", "n_nonzero", "objective", "log_loss", "test_log_loss", "weights", "estimates"))


def test_the_document_has_the_keys_that_are_documented(out: Path) -> None:
    assert keys(json.loads(write_model(out, RELEASED_WITH_INFERENCE).path.read_text())) == {
        "format": None,
        "features": None,
        "classes": None,
        "standardisation": {"mean": None, "scale": None},
        "weights": None,
        "intercept": None,
        "coefficients": [LINE],
        "intercept_coefficient": LINE,
        "objective": dict.fromkeys(("l2", "value", "l1", "penalty")),
        "n_samples": None,
        "participants": [
            dict.fromkeys(("name", "n_samples", "updates_included", "last_base_version", "present")),
        ],
        "version": None,
        "strategy": None,
        "converged": None,
        "metrics": {"train": METRICS, "test": METRICS, "test_by_site": {"hospital-1": METRICS}},
        "convergence": dict.fromkeys(("gradient_norm", "newton_step", "newton_decrement", "gap_bound")),
        "inference": {
            "kind": None,
            "why": None,
            "statistics": STATISTICS,
            "covariance": None,
            "heterogeneity": [COMPARED],
        },
        "by_class": None,
        "notes": None,
        "path": [PATH],
        "feature_schema": None,
        "fill": None,
        "federation": None,
        "epoch": None,
    }


def test_of_more_classes_there_is_a_table_of_each(out: Path) -> None:
    found = json.loads(write_model(out, RELEASED_OF_CLASSES).path.read_text())
    assert keys(found["by_class"]) == [
        {
            **dict.fromkeys(("label", "weights", "intercept")),
            "coefficients": [LINE],
            "intercept_coefficient": LINE,
        }
    ]
    assert [each["label"] for each in found["by_class"]] == found["classes"] == [1, 2, 5]
    assert (found["weights"], found["coefficients"]) == ([], [])
    assert found["inference"]["why"] == "the standard errors were not asked for"


def test_it_says_how_the_columns_follow_from_a_table(out: Path) -> None:
    found = json.loads(write_model(out, RELEASED_OF_A_TABLE).path.read_text(encoding="utf-8"))
    assert keys(found["feature_schema"]) == {
        "features": [
            dict.fromkeys(
                [
                    *("name", "kind", "unit", "low", "high", "levels", "found", "reference", "missing"),
                    *("missing_values", "fill", "fill_level", "clip_low", "clip_high", "log1p", "centre", "scale"),
                ]
            )
        ],
        "label": {"column": None, "values": {}, "above": None},
        "split": dict.fromkeys(("column", "key", "test_share", "seed")),
        "sample_weight": None,
        "offset": None,
    }
    assert found["feature_schema"]["features"][1]["levels"] == ["I", "II", "(other)"]
    assert found["features"] == ["age", "stage=II", "stage=(other)"]
    assert found["fill"] == [52.95, 0.5, 1e-17]


def test_of_very_many_columns_there_are_the_weights_on_their_own_scale(out: Path) -> None:
    found = json.loads(write_model(out, RELEASED_WIDE).path.read_text())
    assert (found["standardisation"], found["coefficients"]) == ({"mean": [], "scale": []}, [])
    assert found["weights"] == list(RELEASED_WIDE.weights)


def test_what_is_undefined_is_null(out: Path) -> None:
    found = json.loads(write_model(out, RELEASED_WITH_INFERENCE).path.read_text())
    assert found["convergence"]["gap_bound"] is None
    assert found["inference"]["covariance"][0] == [0.01, None, 1e-17]
    assert found["inference"]["statistics"]["bic"] is None
    assert found["participants"][1]["present"] is False
    undetermined = found["coefficients"][2]
    assert [undetermined[key] for key in ("std_error", "p_value", "ci_low")] == [None] * 3


def test_the_document_says_what_the_model_does(out: Path) -> None:
    found = json.loads(write_model(out, RELEASED).path.read_text(encoding="utf-8"))
    assert found["format"] == 1
    assert found["features"] == ["age", "Größe", "bmi"]
    assert found["classes"] == [0, 1]
    assert found["weights"] == list(RELEASED.weights), "to the last bit"
    assert [each["name"] for each in found["coefficients"]] == found["features"], "a row for each feature"
    assert found["participants"][1] == {
        "name": "hospital-2",
        "n_samples": 80,
        "updates_included": 9,
        "last_base_version": 33,
        "present": True,
    }
    assert found["metrics"]["test_by_site"]["hospital-1"]["auc"] is None
    assert found["converged"] is True


def test_names_are_written_as_letters_not_as_escapes(out: Path) -> None:
    assert "Größe" in write_model(out, RELEASED).path.read_text(encoding="utf-8")


def test_without_test_rows_there_are_no_metrics_of_them() -> None:
    metrics = replace(RELEASED.metrics, test=None, test_by_site={})
    assert document(replace(RELEASED, metrics=metrics))["metrics"]["test"] is None


# --- the folder -----------------------------------------------------------------------------------------


def test_a_folder_is_made_with_the_ones_above_it(tmp_path: Path) -> None:
    path, kept = write_model(tmp_path / "a" / "b" / "model", RELEASED)
    assert kept is None
    assert path == tmp_path / "a" / "b" / "model" / "model.json"
    assert version_in(path.parent) == 42
    assert sorted(entry.name for entry in path.parents[1].iterdir()) == ["model"], "nothing is left behind"


def test_others_may_read_the_folder(out: Path) -> None:
    write_model(out, RELEASED)
    assert out.stat().st_mode & 0o777 == 0o755


def test_a_name_relative_to_the_current_folder_is_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(type(tmp_path)("model"), RELEASED)
    assert version_in(tmp_path / "model") == 42


class _SystemWithoutExchange:
    """A C library that cannot let two folders change names."""

    def __init__(self, *_: object, **__: object) -> None:
        pass


class _FileSystemWithoutExchange:
    """A C library that could, on another file system."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def renameat2(self, *_: object) -> int:
        return -1


@pytest.mark.parametrize("library", [ctypes.CDLL, _SystemWithoutExchange, _FileSystemWithoutExchange])
def test_a_folder_that_we_wrote_is_replaced_and_nothing_is_left_behind(
    out: Path, monkeypatch: pytest.MonkeyPatch, library: type
) -> None:
    monkeypatch.setattr(model_file.ctypes, "CDLL", library)
    write_model(out, RELEASED)
    write_model(out, NEWER)
    assert version_in(out) == 43
    assert [entry.name for entry in out.parent.iterdir()] == ["model"]


def test_who_reads_while_it_is_replaced_sees_the_old_or_the_new_one(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old document is untouched until the new one is complete and on the disk."""
    write_model(out, RELEASED)
    seen = []
    sync = model_file._sync
    monkeypatch.setattr(model_file, "_sync", lambda folder: (seen.append(version_in(out)), sync(folder)))
    write_model(out, NEWER)
    assert seen == [42, 43]


def test_an_empty_folder_is_used(out: Path) -> None:
    out.mkdir()
    write_model(out, RELEASED)
    assert version_in(out) == 42


def test_a_link_to_a_folder_stays_a_link_and_what_it_points_to_is_replaced(tmp_path: Path, out: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real"
    write_model(real, RELEASED)
    out.symlink_to(real)
    write_model(out, NEWER)
    assert out.is_symlink()
    assert version_in(real) == 43
    assert [entry.name for entry in real.parent.iterdir()] == ["real"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere", "model"]


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("broken", ["_write_durably", "_sync"])
def test_when_writing_fails_nothing_is_left_behind_and_the_old_model_stays(
    out: Path, monkeypatch: pytest.MonkeyPatch, broken: str, *, existed: bool
) -> None:
    if existed:
        write_model(out, RELEASED)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file, broken, fail)
    with pytest.raises(ModelNotWritten, match=r"could not be written to .*No space left on device; what was there"):
        write_model(out, NEWER)
    assert [entry.name for entry in out.parent.iterdir()] == (["model"] if existed else [])
    assert not existed or version_in(out) == 42


def test_a_number_that_json_does_not_have_is_not_written(out: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_model(out, replace(RELEASED, intercept=float("nan")))
    assert list(out.parent.iterdir()) == []


# --- where it cannot be written --------------------------------------------------------------------------


def test_a_folder_with_something_of_somebody_else_makes_way_and_is_kept(out: Path) -> None:
    write_model(out, RELEASED)
    for number, text in enumerate(("years of work", "more of it")):
        (out / "thesis.tex").write_text(text)
        written = write_model(out, NEWER)
        assert version_in(out) == 43
        assert written.kept == out.with_name(f"model.old{number or ''}")
        assert (written.kept / "thesis.tex").read_text() == text
    assert write_model(out, NEWER).kept is None


def test_a_folder_that_holds_where_we_stand_or_the_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "work" / "data"
    data.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    for folder in (tmp_path, tmp_path / "work"):
        with pytest.raises(CommandError, match="would be replaced: name a folder of its own"):
            check_out(folder)
    with pytest.raises(CommandError, match=r"data holds .*data, and would be replaced"):
        check_out(data, inputs=[data])
    check_out(tmp_path / "work" / "model", inputs=[data])


def test_a_file_in_place_of_the_folder_is_refused(out: Path) -> None:
    out.write_text("not a folder")
    with pytest.raises(CommandError, match="is not a folder: name another one for the model"):
        check_out(out)


def test_a_link_to_nowhere_is_refused(out: Path) -> None:
    out.symlink_to(out.parent / "nowhere")
    with pytest.raises(CommandError, match="is not a folder"):
        check_out(out)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match=r"cannot be made: .*file cannot be written to"):
        check_out(tmp_path / "file" / "model")


@pytest.mark.parametrize("existed", [False, True])
def test_a_parent_that_cannot_be_written_to_is_told_before_any_work_is_done(
    out: Path, monkeypatch: pytest.MonkeyPatch, *, existed: bool
) -> None:
    if existed:
        write_model(out, RELEASED)
    asked = []
    # Root may write anywhere: the answer is planted.
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(CommandError, match=f"{out} cannot be made: {out.parent} cannot be written to"):
        check_out(out)
    assert asked == [(out.parent, os.W_OK)]


def test_looking_whether_it_can_be_written_changes_nothing(out: Path) -> None:
    check_out(out)
    check_out(out / "deeper" / "still")
    assert list(out.parent.iterdir()) == []
