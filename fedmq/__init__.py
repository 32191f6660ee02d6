"""fedmq: federated logistic regression as an asyncio message-queue pipeline. The rows stay where they are.

The services and commands are below `fedmq.cli`. For notebooks there is `FederatedLogisticRegression`, which is
imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmq.estimator import FederatedLogisticRegression

__all__ = ["FederatedLogisticRegression", "__version__"]

__version__ = "0.1.0"

#: What scikit-learn brings, without which there is no estimator.
_EXTRA = {"sklearn", "scipy", "joblib", "threadpoolctl"}


def __getattr__(name: str) -> Any:
    """Return the estimator: with it come numpy, scikit-learn and the services, which no command line waits for."""
    if name != "FederatedLogisticRegression":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from fedmq.estimator import FederatedLogisticRegression
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise ImportError(
            "fedmq.FederatedLogisticRegression needs scikit-learn: pip install 'fedmq[sklearn]'"
        ) from None
    return FederatedLogisticRegression


def __dir__() -> list[str]:
    """Name what is imported when it is first asked for, too."""
    return sorted({*globals(), *__all__})
