"""Mean accuracy over the four hospitals of UCI Heart Disease, on FLamby's split: ours beside what is published for it.

::

    python benchmarks/heart_disease.py

Every strategy trains with its defaults on the same rows; standardisation is federated. FLamby's figures are those of
its paper (Ogier du Terrail et al., NeurIPS 2022, Fed-Heart-Disease), which standardises nothing across hospitals.
"""

from __future__ import annotations

import os

for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import json
import tempfile
from pathlib import Path

from fedmq.train import TrainRequest, train
from participant.settings import TableSettings

ROOT = Path(__file__).parents[1]
EXPECTED = ROOT / "tests" / "data" / "heart_disease" / "expected.json"

#: Ours, with what is set besides the defaults.
STRATEGIES: list[tuple[str, dict[str, object]]] = [
    ("incremental-newton", {"l2": 0.0}),
    ("incremental-newton", {"l2": 0.01}),
    ("fedavg", {}),
    ("fedavg", {"local_steps": 50}),
    ("fedprox", {"local_steps": 50}),
    ("scaffold", {"local_steps": 50}),
    ("fedadam", {}),
]

#: Mean accuracies that FLamby publishes.
PUBLISHED = {
    "pooled training": 0.735,
    "FedAdagrad, FedYogi": 0.731,
    "FedAdam": 0.726,
    "Cyclic": 0.718,
    "FedAvg, FedProx": 0.685,
    "SCAFFOLD": 0.684,
}


def mean_accuracy(strategy: str, options: dict[str, object]) -> tuple[float, float]:
    """Return the mean over the hospitals of the accuracy on their test rows, and the objective reached."""
    with tempfile.TemporaryDirectory() as folder:
        request = TrainRequest(
            data=[ROOT / "examples" / "heart_disease"],
            tables=TableSettings(label="y", split="split"),
            out=Path(folder) / "model",
            options={"strategy": strategy, **options},
        )
        model = train(request, on_progress=lambda _: None)
    accuracies = [metrics.accuracy for metrics in model.metrics.test_by_site.values()]
    return sum(accuracies) / len(accuracies), model.objective.value


def main() -> None:
    print("UCI Heart Disease, FLamby's split: mean accuracy over the four hospitals' test rows\n")
    print(f"{'strategy':<48} {'mean accuracy':>13} {'objective':>10}")
    for strategy, options in STRATEGIES:
        accuracy, objective = mean_accuracy(strategy, options)
        said = ", ".join(f"{name} {value}" for name, value in options.items())
        print(f"{strategy + (f' ({said})' if said else ''):<48} {accuracy:>13.3f} {objective:>10.5f}")
    for name, accuracy in PUBLISHED.items():
        print(f"{'FLamby: ' + name:<48} {accuracy:>13.3f} {'':>10}")
    fits = json.loads(EXPECTED.read_text(encoding="utf-8"))["fits"]
    print(
        "\nobjectives of the pooled fits: "
        + ", ".join(f"{key} {fit['loss_objective']:.5f}" for key, fit in fits.items())
    )


if __name__ == "__main__":
    main()
