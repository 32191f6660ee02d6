"""What a participant keeps of a release: documents that say it all, files that are whole."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from golden.examples import MODEL, PLAN, PLAN_OF_A_TABLE, RELEASED_WIDE

from broker import codec
from broker.messages import Frame, GlobalModel, Plan
from logistic import Standardisation, probabilities
from participant import released
from participant.errors import ReleaseError
from participant.personal import Kind
from participant.released import GLOBAL, LOCAL, ReleaseFolder, global_document, read_release, write_whole
from participant.sources import Table
from participant.training import prepare

BOTH: tuple[Kind, ...] = ("own_intercept", "fine_tuned")
RELEASED = replace(MODEL, phase="converged")
OF_CLASSES = replace(PLAN, classes=(2, 5, 9))
MODEL_OF_CLASSES = replace(RELEASED, weights=np.random.default_rng(0).normal(size=12))

SCORING = Path(__file__).parents[3] / "examples" / "score_released.py"


def table(seed: int = 0, n_rows: int = 90, classes: tuple[int, ...] = (0, 1), n_test: int = 40) -> Table:
    rng = np.random.default_rng(seed)
    X = rng.normal([50.0, 0.5, 1.0], [10.0, 0.5, 2.0], size=(n_rows, 3))
    y = rng.choice(np.array(classes, dtype=np.float64), size=n_rows)
    return Table(PLAN.features, X, y, np.arange(n_rows) < n_rows - n_test, classes=classes)


def scoring() -> Any:
    """Return the script of a downstream system, which knows nothing of us."""
    spec = importlib.util.spec_from_file_location("score_released", SCORING)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def folder(tmp_path: Path) -> ReleaseFolder:
    return ReleaseFolder(tmp_path / "a" / "site", "hospital-1", BOTH)


def made(folder: ReleaseFolder, plan: Plan = PLAN, model: GlobalModel = RELEASED, rows: Table | None = None) -> Any:
    """Keep a release, make the own models, and return ``local.json``."""
    folder.keep(plan, model)
    release = folder.unfinished(plan.federation)
    assert release is not None
    folder.personalise(release, table() if rows is None else rows)
    return json.loads((folder.path / LOCAL).read_text(encoding="utf-8"))


# --- the global model -------------------------------------------------------------------------


def test_the_global_document_has_the_keys_that_are_documented() -> None:
    document = global_document(PLAN, RELEASED)
    assert set(document) == {
        *("format", "features", "classes", "standardisation", "weights", "intercept", "coefficients"),
        *("intercept_coefficient", "by_class", "objective", "fill", "version", "strategy", "seed", "federation"),
        *("epoch", "plan_hash", "feature_schema"),
    }
    assert document["weights"] == [0.5, -0.25, 1 / 3]
    assert document["intercept"] == -2.0
    assert (document["version"], document["epoch"], document["federation"]) == (41, 2, "heart")


def test_whoever_scores_with_the_released_model_scores_with_ours_too(folder: ReleaseFolder) -> None:
    script, local = scoring(), made(folder)
    assert PLAN.frame is not None
    rows = table()
    Z = Standardisation(PLAN.frame.mean, PLAN.frame.scale).apply(rows.X)
    for document in (global_document(PLAN, RELEASED), local["global"], local["own_intercept"], local["fine_tuned"]):
        expected = probabilities(Z, np.array([*document["weights"], document["intercept"]]))
        found = [script.score(document, dict(zip(rows.features, row, strict=True))) for row in rows.X]
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_whoever_scores_keeps_the_model_of_the_largest_epoch_and_of_that_the_largest_version() -> None:
    of_a_backup = {"epoch": 3, "version": 20}
    models = [{"epoch": 1, "version": 28}, of_a_backup, {"epoch": 3, "version": 9}, {"epoch": 2, "version": 36}]
    assert scoring().newest(models) == of_a_backup
    assert scoring().newest(models[::-1]) == of_a_backup


@pytest.mark.parametrize("frame", [PLAN.frame, None], ids=["standardised", "as they are"])
def test_whoever_scores_does_so_without_a_table_of_coefficients_too(
    monkeypatch: pytest.MonkeyPatch, frame: Frame | None
) -> None:
    plan, row = replace(PLAN, frame=frame), {"age": 50.0, "Größe": 1.0, "bmi": 22.5}
    whole = global_document(plan, RELEASED)
    monkeypatch.setattr(released, "WIDEST_TABLE", 2)
    wide = global_document(plan, RELEASED)
    assert wide == {**whole, "coefficients": []}
    assert scoring().score(wide, row) == pytest.approx(scoring().score(whole, row), rel=1e-12)


def test_whoever_scores_with_the_message_of_a_wide_model_reads_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"age": 50.0, "Größe": 1.0, "bmi": 22.5}
    with monkeypatch.context() as patched:
        patched.setattr(codec, "MANY_TEXTS", 2)
        message = msgpack.unpackb(codec.encode(RELEASED_WIDE))
    assert message["features"]["dtype"] == "text"
    assert list(scoring().estimates(message)) == list(RELEASED_WIDE.features)
    margin = RELEASED_WIDE.intercept + float(np.dot(RELEASED_WIDE.weights, [50.0, 1.0, 22.5]))
    assert scoring().score(message, row) == pytest.approx(1 / (1 + np.exp(-margin)), rel=1e-12)


def test_of_more_classes_each_has_its_coefficients_relative_to_the_first() -> None:
    document = global_document(OF_CLASSES, MODEL_OF_CLASSES)
    assert document["weights"] == document["coefficients"] == []
    assert [each["label"] for each in document["by_class"]] == [2, 5, 9]
    first, second, _ = document["by_class"]
    assert all(row["estimate"] == 0.0 for row in first["coefficients"])
    assert PLAN.frame is not None
    difference = np.array(second["weights"]) - first["weights"]
    np.testing.assert_allclose([row["estimate"] for row in second["coefficients"]], difference / PLAN.frame.scale)


def test_rows_that_are_taken_as_they_are_have_the_scale_one() -> None:
    document = global_document(replace(PLAN, frame=None), RELEASED)
    assert document["standardisation"] == {"mean": [0.0] * 3, "scale": [1.0] * 3}
    assert [row["estimate"] for row in document["coefficients"]] == document["weights"]


@pytest.mark.parametrize(
    ("plan", "model", "classes"),
    [
        (PLAN, RELEASED, (0, 1)),
        (replace(PLAN, frame=None, l1=0.25, penalty="firth"), RELEASED, (0, 1)),
        (replace(PLAN, missing="mean", fill=np.array([1 / 3, 2.0, 3.0]), class_weights=(0.3, 1.7)), RELEASED, (0, 1)),
        (OF_CLASSES, MODEL_OF_CLASSES, (2, 5, 9)),
    ],
    ids=["plain", "no frame", "missing cells and class weights", "three classes"],
)
def test_the_rows_under_the_plan_that_is_read_are_the_same_to_the_bit(
    plan: Plan, model: GlobalModel, classes: tuple[int, ...]
) -> None:
    """All that a start needs to make the own models again is in ``global.json``."""
    release = read_release(json.loads(json.dumps(global_document(plan, model), allow_nan=False)))
    assert release.weights.tobytes() == model.weights.tobytes()
    assert (release.version, release.epoch, release.plan_hash) == (model.version, model.epoch, model.plan_hash)
    assert (release.plan.seed, release.plan.penalty, release.plan.l1) == (plan.seed, plan.penalty, plan.l1)
    rows = replace(table(classes=classes), sample_weight=np.linspace(0.0, 2.0, 90))
    if plan.missing == "mean":
        rows.X[::7, 1] = np.nan
    before, after = prepare(rows, plan, "h"), prepare(rows, release.plan, "h")
    for first, second in ((before.train, after.train), (before.test, after.test)):
        assert first is not None
        assert second is not None
        assert first.X.tobytes() == second.X.tobytes()
        assert first.y.tobytes() == second.y.tobytes()
        assert first.sample_weight is not None
        assert second.sample_weight is not None
        assert first.sample_weight.tobytes() == second.sample_weight.tobytes()
        assert (first.l2, first.n_classes) == (second.l2, second.n_classes)


def test_a_frame_that_subtracts_nothing_is_read_as_one() -> None:
    """Else sparse rows would become dense."""
    assert PLAN.frame is not None
    for frame in (Frame(None, PLAN.frame.scale), None):
        release = read_release(json.loads(json.dumps(global_document(replace(PLAN, frame=frame), RELEASED))))
        assert release.plan.frame is not None
        assert release.plan.frame.mean is None
        np.testing.assert_array_equal(release.plan.frame.scale, np.ones(3) if frame is None else frame.scale)


def test_the_schema_under_which_it_was_trained_is_read_as_it_was(folder: ReleaseFolder) -> None:
    plan = PLAN_OF_A_TABLE
    release = read_release(json.loads(json.dumps(global_document(plan, RELEASED))))
    assert release.plan.feature_schema == plan.feature_schema
    assert release.plan.features == plan.features
    assert folder.keep(plan, RELEASED)
    assert not folder.keep(plan, RELEASED)


def test_a_document_of_before_there_were_schemas_has_none() -> None:
    document = global_document(PLAN, RELEASED)
    del document["feature_schema"]
    assert read_release(document).plan.feature_schema is None


# --- the own models ---------------------------------------------------------------------------


def test_the_local_document_has_the_keys_that_are_documented(folder: ReleaseFolder) -> None:
    local = made(folder)
    assert set(local) == {
        *("format", "participant", "features", "classes", "standardisation", "n_train_rows", "n_test_rows"),
        *("verdict", "global", "own_intercept", "fine_tuned", "version", "federation", "epoch", "plan_hash"),
    }
    assert (local["participant"], local["n_train_rows"], local["n_test_rows"]) == ("hospital-1", 50, 40)
    model = {"weights", "intercept", "coefficients", "intercept_coefficient", "by_class", "test"}
    assert set(local["global"]) == model
    judged = {*model, "kept", "comparison", "verdict"}
    assert set(local["own_intercept"]) == judged
    assert set(local["fine_tuned"]) == {*judged, "mu", "cross_validation"}
    assert set(local["fine_tuned"]["test"]) == {"n", "log_loss", "brier", "accuracy", "auc"}
    assert set(local["own_intercept"]["comparison"]) == {"n_rows", "difference", "std_error", "better"}
    assert local["verdict"] == local["fine_tuned"]["verdict"]
    assert local["fine_tuned"]["cross_validation"][0]["mu"] is None, "infinity, which JSON has not"


def test_without_test_rows_nothing_is_compared(folder: ReleaseFolder) -> None:
    local = made(folder, rows=table(n_test=0))
    for kind in BOTH:
        assert (local[kind]["test"], local[kind]["comparison"]) == (None, None)


def test_own_models_of_more_classes_are_written_as_the_global_one_is(folder: ReleaseFolder) -> None:
    local = made(folder, OF_CLASSES, MODEL_OF_CLASSES, table(classes=(2, 5, 9), n_rows=200))
    for kind in BOTH:
        assert [each["label"] for each in local[kind]["by_class"]] == [2, 5, 9]
        assert local[kind]["test"]["auc"] is None


def test_rows_that_are_at_hand_are_not_prepared_again(folder: ReleaseFolder) -> None:
    folder.keep(PLAN, RELEASED)
    release = folder.unfinished("heart")
    assert release is not None
    found = folder.personalise(release, table(1), prepared=prepare(table(2), PLAN, "h"))
    (folder.path / LOCAL).unlink()
    np.testing.assert_array_equal(
        found.own["fine_tuned"].model.weights, folder.personalise(release, table(2)).own["fine_tuned"].model.weights
    )


# --- what is to be done -----------------------------------------------------------------------


def test_a_release_is_kept_once_whatever_the_epoch(folder: ReleaseFolder) -> None:
    """An aggregator that starts again announces what it had released."""
    assert folder.keep(PLAN, RELEASED)
    before = (folder.path / GLOBAL).stat()
    assert not folder.keep(PLAN, RELEASED)
    assert not folder.keep(PLAN, replace(RELEASED, epoch=9, bulletin=99))
    assert (folder.path / GLOBAL).stat() == before
    assert folder.keep(PLAN, replace(RELEASED, version=42))
    assert folder.keep(PLAN, replace(RELEASED, version=42, weights=RELEASED.weights + 1))


def test_what_is_made_of_a_release_is_made_once(folder: ReleaseFolder) -> None:
    assert folder.unfinished("heart") is None, "nothing is released"
    made(folder)
    assert folder.unfinished("heart") is None
    folder.keep(PLAN, replace(RELEASED, version=42))
    assert folder.unfinished("heart") is not None, "there is a newer release"


def test_who_wants_another_model_gets_it_at_the_next_start(folder: ReleaseFolder) -> None:
    made(replace(folder, wanted=("own_intercept",)))
    assert folder.unfinished("heart") is not None
    made(folder)
    assert replace(folder, wanted=("own_intercept",)).unfinished("heart") is None, "it is there"


def test_who_wants_none_makes_none(folder: ReleaseFolder) -> None:
    folder.keep(PLAN, RELEASED)
    assert replace(folder, wanted=()).unfinished("heart") is None


def test_a_release_of_another_federation_is_nothing_to_go_on_with(folder: ReleaseFolder) -> None:
    folder.keep(PLAN, RELEASED)
    assert folder.unfinished("lungs") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', "\xff"])
def test_a_file_that_is_none_of_ours_is_replaced(folder: ReleaseFolder, text: str) -> None:
    folder.path.mkdir(parents=True)
    for name in (GLOBAL, LOCAL):
        (folder.path / name).write_text(text, encoding="latin-1")
    assert folder.unfinished("heart") is None
    assert made(folder)["version"] == 41


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_who_is_killed_while_writing_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file.json"
    write_whole(path, {"number": 1})

    class _Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(os if broken == "fsync" else Path, broken, killed)
        with pytest.raises(_Killed):
            write_whole(path, {"number": 2, "more": "x" * 10_000})
    assert json.loads(path.read_text()) == {"number": 1}
    write_whole(path, {"number": 3})
    assert json.loads(path.read_text()) == {"number": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"], "what was left behind is gone"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    seen: list[bool] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(path.exists()), fsync(file)))
    write_whole(path, {})
    assert seen == [False, True], "the file, and then the folder"


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(released.os, "fsync", fail)
    with pytest.raises(ReleaseError, match=r"global.json could not be written \(No space left on device\): check its"):
        ReleaseFolder(tmp_path, "site").keep(PLAN, RELEASED)


def test_a_coefficient_beyond_all_numbers_is_told_in_a_sentence(tmp_path: Path) -> None:
    tiny = replace(PLAN, frame=Frame(np.zeros(3), np.array([1.0, 1.0, 1e-308])))
    with np.errstate(all="ignore"), pytest.raises(ReleaseError, match="a coefficient is beyond all numbers"):
        ReleaseFolder(tmp_path, "site").keep(tiny, replace(RELEASED, weights=np.full(4, 1e10)))
    assert not (tmp_path / GLOBAL).exists()
