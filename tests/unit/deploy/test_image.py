"""The image: what is copied into its build, what is in the wheel that it installs, and as whom it runs."""

from __future__ import annotations

import fnmatch
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from servers import compose
from servers.compose import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


def copied() -> list[str]:
    """Return the paths of the repository that the Dockerfile copies."""
    lines = [rest.split() for word, rest in compose.dockerfile() if word == "COPY" and not rest.startswith("--from")]
    return [path for line in lines for path in line[:-1]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from what the Dockerfile copies, and nothing else."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    leftovers = shutil.ignore_patterns("__pycache__")
    for path in copied():
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, source / path, ignore=leftovers)
        else:
            shutil.copy(ROOT / path, source / path)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "-w", str(built), "."]
    if importlib.util.find_spec("hatchling") is not None:  # else pip fetches it for this build
        command.append("--no-build-isolation")
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_everything_that_the_wheel_is_made_of_is_copied_into_the_build() -> None:
    needed = {
        *WHEEL["packages"],
        *WHEEL["force-include"],
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        "pyproject.toml",
    }
    assert set(copied()) == needed


def test_the_builder_is_sent_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied())
    assert not any(fnmatch.fnmatch(path, "deploy*") for path in copied())


def test_the_wheel_has_every_package_and_what_belongs_to_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = [
        path.relative_to(ROOT)
        for package in WHEEL["packages"]
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {str(path) for path in sources} <= names
    assert "monitoring/grafana/dashboards/fedmq.json" in names
    assert "monitoring/prometheus/rules.yml" in names
    assert "monitoring/py.typed" in names


def test_the_wheel_has_the_data_of_the_demo(wheel: zipfile.ZipFile) -> None:
    data = {path.name for path in (ROOT / "examples" / "heart_disease").iterdir() if path.is_file()}
    packed = {Path(name).name for name in wheel.namelist() if name.startswith("fedmq/data/heart_disease/")}
    assert packed == data
    assert {f"site-{name}.csv" for name in ("cleveland", "hungarian", "switzerland", "va")} <= packed


def test_the_wheel_has_no_tests_and_no_secrets(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    assert top == set(WHEEL["packages"])


def test_the_wheel_has_the_command_that_the_image_runs(wheel: zipfile.ZipFile) -> None:
    [entry_points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert compose.image_entrypoint() == ["fedmq"]
    assert b"fedmq = fedmq.cli:main" in wheel.read(entry_points)


def test_the_image_runs_as_a_numbered_user_who_owns_nothing_but_the_state() -> None:
    instructions = compose.final_stage()
    assert [rest for word, rest in instructions if word == "USER"] == ["10001:10001"]
    [setup] = [rest for word, rest in instructions if word == "RUN"]
    assert "--owner=10001 --group=10001 --mode=0700 /var/lib/fedmq" in setup
    assert [word for word, _ in instructions].index("USER") > [word for word, _ in instructions].index("RUN")


def test_the_image_installs_no_packages_of_the_system_and_brings_no_builder_along() -> None:
    assert all("apt" not in rest for word, rest in compose.dockerfile() if word == "RUN")
    assert [rest for word, rest in compose.final_stage() if word == "COPY"] == ["--from=build /opt/fedmq /opt/fedmq"]
    assert {rest.split()[0] for word, rest in compose.dockerfile() if word == "FROM"} == {"python:3.12-slim"}


def test_the_image_prints_at_once_and_serves_no_creation_times() -> None:
    environment = compose.image_environment()
    assert environment["PYTHONUNBUFFERED"] == "1"
    assert environment["PROMETHEUS_DISABLE_CREATED_SERIES"] == "true"
    assert environment["PATH"].startswith("/opt/fedmq/bin:")
