"""The federation as a scikit-learn estimator: for notebooks, cross-validation, and whoever has the sites in one place.

It is what ``fedmq train`` does, in this process: the services of production on a broker in memory. Rows are in this
process too; where they may not leave their sites, serve the federation over RabbitMQ instead.

Of two classes p = 1 / (1 + exp(-decision)), of more p_c is proportional to exp(decision_c), with

    decision = x . coef_ + intercept_,      coef_ = w / scale,      intercept_ = b - coef_ . mean

w and b being the released weights on the standardised scale, z = (x - mean) / scale.
"""

from __future__ import annotations

import asyncio
import io
import logging
import warnings
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from broker.messages import ReleasedModel
from fedmq.embedded import train_embedded
from fedmq.errors import CommandError, ours_in
from fedmq.given_sites import FILE_CLASSES, Given, Labels, Rows, make_sites, read_given
from fedmq.model_file import Written
from fedmq.show import print_summary
from fedmq.sites import Site
from fedmq.train import train_settings
from participant.sources import Columns, Missing

Floats = NDArray[np.float64]

#: Where the model is written to of which only the summary is wanted.
_NOWHERE = Path("-")


#: What the only site is called when rows are given without a site.
ONLY_SITE = "site"


@contextmanager
def _quiet() -> Iterator[None]:
    """Log errors alone meanwhile, unless somebody has set up logging: what a user can do something about is raised."""
    ours = logging.getLogger("fedmq")
    level = ours.level
    if level == logging.NOTSET:
        ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(level)


class FederatedLogisticRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Logistic regression that a federation of sites fits, in scikit-learn's conventions.

    Parameters
    ----------
    l2 : float or None
        Ridge penalty; None for one over the weight of the training rows, which is scikit-learn's ``C=1``.
    l1 : float
        Penalty on absolute values: lasso, or elastic net together with ``l2``.
    penalty : {"ridge", "firth"}
        ``firth`` is Firth's, in place of ``l2`` and ``l1``.
    strategy : str
        How updates become the next model; ``auto`` is exact.
    inference : {"wald", "sandwich", "none"}
        Standard errors of the model.
    standardise : bool
        Standardise columns by the pooled mean and standard deviation. Penalties are on that scale, ``coef_`` is not.
    missing : {"refuse", "mean"}
        Whether NaN among the features is an error, or filled with the mean of all sites.
    class_weights : dict or None
        How much rows of each class count, by label; 1 where it says nothing.
    classes : array-like or None
        All labels that there are; None for those of the sites, and 0 and 1 for sites that are files.
    label, split, sample_weight, offset : str or None
        Columns of sites that are data frames or files: what is predicted, ``train`` or ``test``, how much a row
        counts, what is added to its margin. All others are features.
    seed : int
        Seed of everything that is random in local fits.
    options : dict or None
        Further settings of the aggregator by name, such as ``{"max_versions": 50}``; see docs/configuration.md.

    Attributes
    ----------
    coef_ : ndarray, (1, n_features), or (n_classes, n_features) of more than two classes
        Log-odds per unit of each column, in the columns' own units.
    intercept_ : ndarray, (1,) or (n_classes,)
    classes_ : ndarray, (n_classes,)
        The labels of all sites, sorted.
    n_features_in_ : int
    feature_names_in_ : ndarray of str, (n_features_in_,)
        Only when the columns have names.
    n_iter_ : int
        The number of the released version.
    model_ : ReleasedModel
        What ``fedmq train`` writes to ``model.json``: standard errors, tests, metrics, notes; see docs/model.md.
    """

    def __init__(
        self,
        *,
        l2: float | None = None,
        l1: float = 0.0,
        penalty: Literal["ridge", "firth"] = "ridge",
        strategy: str = "auto",
        inference: Literal["none", "wald", "sandwich"] = "wald",
        standardise: bool = True,
        missing: Missing = "refuse",
        class_weights: Mapping[Any, float] | None = None,
        classes: Any = None,
        label: str = "y",
        split: str | None = None,
        sample_weight: str | None = None,
        offset: str | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.l2 = l2
        self.l1 = l1
        self.penalty = penalty
        self.strategy = strategy
        self.inference = inference
        self.standardise = standardise
        self.missing = missing
        self.class_weights = class_weights
        self.classes = classes
        self.label = label
        self.split = split
        self.sample_weight = sample_weight
        self.offset = offset
        self.seed = seed
        self.options = options

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train over sites, or over one.

        Parameters
        ----------
        X : dict of the sites by name, each ``(X, y)``, ``(X, y, sample_weight)``, a data frame or the path of a .csv or
            .npz file; or the rows of one site, (n_rows, n_features).
        y : (n_rows,) labels of one site, of any kind; of several, each has its own.
        sample_weight : (n_rows,) how much each row of one site counts.

        Raises
        ------
        ValueError
            When the rows or a parameter cannot be used, or there is no finite estimate.
        """
        with _as_value_errors():
            columns = Columns(self.label, self.split, self.sample_weight, self.offset, missing=self.missing)
            if is_several := isinstance(X, Mapping) and not hasattr(X, "tocsr"):  # a dictionary of keys is one too
                if y is not None or sample_weight is not None:
                    raise CommandError("X is a mapping of sites: give each one's y and sample_weight there")
                given = read_given(X, columns)
            else:
                given = {ONLY_SITE: self._one_site(X, y, sample_weight)}
            classes = self._labels(given)
            sites = make_sites(given, columns, classes)
            model = self._train(sites, classes)
        self.classes_ = classes
        self.model_ = model
        self.n_iter_ = model.version
        self.coef_, self.intercept_ = _on_original_scale(model)
        if is_several:
            self._name_features(given)
        if not model.converged:
            warnings.warn("training stopped at its last version, not converged", ConvergenceWarning, stacklevel=2)
        return self

    def decision_function(self, X: Any) -> Floats:
        """Return the log-odds of the second of two classes, (n_rows,), or the margins of more, (n_rows, n_classes).

        Parameters
        ----------
        X : (n_rows, n_features) in the columns' own units and in their order; an offset is no part of it.
        """
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        if self.model_.fill:
            X = _filled(X, np.array(self.model_.fill))
        margins: Floats = X @ self.coef_.T + self.intercept_
        return margins.ravel() if len(self.intercept_) == 1 else margins

    def predict(self, X: Any) -> Labels:
        """Return the likeliest class of each row, (n_rows,)."""
        margins = self.decision_function(X)
        likeliest = np.argmax(margins, axis=1) if margins.ndim > 1 else (margins > 0.0).astype(np.intp)
        labels: Labels = self.classes_[likeliest]
        return labels

    def predict_proba(self, X: Any) -> Floats:
        """Return the probability of each class, (n_rows, n_classes)."""
        margins = self.decision_function(X)
        p: Floats = softmax(margins, axis=1) if margins.ndim > 1 else np.column_stack([expit(-margins), expit(margins)])
        return p

    def predict_log_proba(self, X: Any) -> Floats:
        """Return the logarithms of the probabilities, (n_rows, n_classes)."""
        margins = self.decision_function(X)
        if margins.ndim > 1:
            logs: Floats = log_softmax(margins, axis=1)
            return logs
        return np.column_stack([log_expit(-margins), log_expit(margins)])

    def summary(self) -> Summary:
        """Return what ``fedmq train`` prints: estimates, standard errors, tests, and whether the sites agree."""
        check_is_fitted(self)
        with redirect_stdout(io.StringIO()) as printed:
            print_summary(self.model_, Written(_NOWHERE, None), {})
        text = printed.getvalue().partition(f"The model is in {_NOWHERE}")[0].rstrip()
        if [*self.classes_] != [*self.model_.classes]:
            coded = zip(self.model_.classes, self.classes_, strict=True)
            text += f"\n\nclasses: {', '.join(f'{code} is {label}' for code, label in coded)}"
        return Summary(text)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing == "mean"
        return tags

    def _validated(self, X: Any, *more: Any, reset: bool) -> Any:
        """Return what scikit-learn makes of ``X``, and of y if it is given; remember the columns, or compare."""
        finite = "allow-nan" if self.missing == "mean" else True
        try:
            found = validate_data(
                self, X, *more, accept_sparse="csr", dtype=np.float64, ensure_all_finite=finite, reset=reset
            )
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            raise ValueError("X holds text where numbers belong; code it as numbers") from None
        return found

    def _one_site(self, X: Any, y: Any, sample_weight: Any) -> Rows:
        X, y = self._validated(X, y, reset=True)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            _check_several(np.unique(y[sample_weight > 0.0]))
        return Rows(X, y, sample_weight, features=getattr(self, "feature_names_in_", None))

    def _labels(self, given: Mapping[str, Given]) -> Labels:
        """Return all labels that there are, sorted."""
        found = [each.y for each in given.values() if isinstance(each, Rows)]
        for y in found:
            check_classification_targets(y)
        if self.classes is not None:
            found = [np.asarray(self.classes)]
        elif len(found) < len(given):
            found.append(np.array(FILE_CLASSES))
        try:
            classes: Labels = unique_labels(*found)
        except ValueError:  # whose sentence has the labels in it
            raise CommandError("the labels are text at one site and numbers at another: use the same") from None
        _check_several(classes)
        return classes

    def _train(self, sites: list[Site], classes: Labels) -> ReleasedModel:
        options = dict(self.options or {})
        named = {
            "l2": self.l2,
            "l1": self.l1,
            "penalty": self.penalty,
            "strategy": self.strategy,
            "inference": self.inference,
            "standardise": self.standardise,
            "missing": self.missing,
            "class_weights": _in_order(self.class_weights, classes),
            "seed": self.seed,
        }
        if twice := sorted(options.keys() & named.keys()):
            raise CommandError(f"options: {twice[0]!r} is a parameter of its own; give it there")
        settings = train_settings(sites, {**named, **options})
        # Several fits at once, each on all cores, wait for one another many times longer.
        with threadpool_limits(1, user_api="blas"), _quiet():
            return _run(train_embedded(sites, settings, slow={}, least_fit_seconds=0.0, on_progress=lambda _: None))

    def _name_features(self, given: Mapping[str, Given]) -> None:
        """Remember the columns of sites as scikit-learn remembers those of arrays: names only where there are any."""
        self.n_features_in_ = len(self.model_.features)
        if any(isinstance(each, Path) or each.has_names for each in given.values()):
            self.feature_names_in_ = np.array(self.model_.features, dtype=np.object_)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_


class Summary(str):
    """A text that a notebook shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _check_several(classes: Labels) -> None:
    if len(classes) < 2:  # noqa: PLR2004 - the fewest that can be told apart
        raise CommandError("all rows that count are of one class: rows of another are needed")


def _in_order(class_weights: Mapping[Any, float] | None, classes: Labels) -> tuple[float, ...]:
    """Return the weights in the order of ``classes``; none where all count the same."""
    if class_weights is None:
        return ()
    if unknown := [label for label in class_weights if label not in classes]:
        raise CommandError(f"class_weights: there is no class {unknown[0]!r}")
    return tuple(float(class_weights.get(label, 1.0)) for label in classes)


def _on_original_scale(model: ReleasedModel) -> tuple[Floats, Floats]:
    """Return coefficients, (n_outputs, n_features), and intercepts, (n_outputs,), for the columns' own units."""
    outputs = model.by_class or (model,)
    w = np.array([each.weights for each in outputs])
    b = np.array([each.intercept for each in outputs])
    # Of very many columns the weights are for their own units already, and there is no standardisation.
    coef = w / np.array(model.standardisation.scale or 1.0)
    return coef, b - (coef * np.array(model.standardisation.mean or 0.0)).sum(axis=1)


def _filled(X: Any, fill: Floats) -> Any:
    """Return ``X``, an array or CSR, with the mean of all sites, (n_features,), in place of missing cells."""
    if not hasattr(X, "tocsr"):
        return np.where(np.isnan(X), fill, X)
    filled = X.copy()
    filled.data = np.where(np.isnan(X.data), fill[X.indices], X.data)
    return filled


@contextmanager
def _as_value_errors() -> Iterator[None]:
    """Raise our own errors as ValueError, which is what callers of scikit-learn expect, without what led to them."""
    try:
        yield
    except Exception as error:
        ours = ours_in(error)
        if ours is None:
            raise
        raise ValueError(str(ours)) from None


def _run(coroutine: Coroutine[Any, Any, ReleasedModel]) -> ReleasedModel:
    """Return what ``coroutine`` returns, run in a thread of its own: a notebook's has an event loop that is running."""
    loop = asyncio.new_event_loop()

    def run() -> ReleasedModel:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(coroutine)

    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            return thread.submit(run).result()
        except KeyboardInterrupt:
            with suppress(RuntimeError):  # the loop may have ended meanwhile
                loop.call_soon_threadsafe(_cancel_all, loop)
            raise


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
