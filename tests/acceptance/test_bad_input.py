"""Wrong input to the commands: exit code 2, one sentence, nothing written, and no value of anybody's in it."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from command import Ended, run_command, without_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]

#: Planted in cells, secrets and settings: no part of any output.
CANARY = "canary-7731"
CANARY_NUMBER = "7731.7731"

HEADER = "age,bmi,y\n"
ROWS = HEADER + "63,27.5,1\n45,31,0\n50,22.25,0\n38,24,1\n"


@dataclass(frozen=True, slots=True)
class Case:
    """A training of two sites with something wrong: in the second one's file, or in what is asked for.

    ``replaces`` are options in place of the usual ones; None leaves one out.
    """

    sentence: str
    content: str | bytes = ROWS
    options: tuple[str, ...] = ()
    replaces: dict[str, str | None] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start as a fresh process would, from the root of the repository, and leave no configured log behind."""
    without_settings(monkeypatch)
    monkeypatch.chdir(ROOT)
    yield
    structlog.reset_defaults()


@pytest.fixture
def fedmq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Give the command, run in this process."""

    def run(*arguments: str) -> Ended:
        return run_command(monkeypatch, capsys, *arguments)

    return run


def in_a_process(*arguments: str, timeout: float = 60) -> Ended:
    """Run the command as a user does."""
    ended = subprocess.run(
        [sys.executable, "-m", "fedmq", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=timeout,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def arguments_of(case: Case, folder: Path) -> list[str]:
    """Write the sites of ``case``, and return how the training of them is asked for."""
    data = folder / "sites"
    data.mkdir()
    (data / "site-a.csv").write_text(ROWS)
    content = case.content.encode() if isinstance(case.content, str) else case.content
    (data / "site-b.csv").write_bytes(content)
    usual = {"--data": str(data), "--label": "y", "--out": str(folder / "model"), **case.replaces}
    given = [each for name, value in usual.items() if value is not None for each in (name, value)]
    return ["train", *given, *case.options]


def assert_refused(ended: Ended, sentence: str) -> None:
    """Check that a command ended with exit code 2 and one sentence, besides which a usage hint may stand."""
    assert ended.out == ""
    first, *rest = ended.err.splitlines()
    assert sentence in first
    assert first.startswith("fedmq: ")
    assert len(rest) <= 1, ended.err
    assert not rest or rest[0].endswith("--help` shows what there is")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    for planted in (CANARY, CANARY_NUMBER, "7731"):
        assert planted not in ended.err


def assert_nothing_written(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["sites"]
    assert sorted(path.name for path in (folder / "sites").iterdir()) == ["site-a.csv", "site-b.csv"]


def with_cell(cell: str) -> str:
    """Return a site whose third row has ``cell`` for a body mass index."""
    return f"{ROWS}{CANARY_NUMBER},{cell},0\n"


BAD: dict[str, Case] = {
    # --- data
    "a column missing": Case("has no column 'bmi', which", "age,y\n7731,1\n"),
    "a column more": Case("has a column 'height', which", "age,bmi,height,y\n7731,1,1,1\n"),
    "label missing at one site": Case(
        "site-b.csv has no column 'y', which was named as the label", "age,bmi\n7731,1\n"
    ),
    "label missing everywhere": Case("site-a.csv has no column 'outcome'", replaces={"--label": "outcome"}),
    "split missing": Case("has no column 'fold', which was named as the split", options=("--split", "fold")),
    "split not named": Case("column 'fold': the cell says train or test", HEADER.strip() + ",fold\n1,2,0,train\n"),
    "empty cell": Case("site-b.csv, line 6, column 'bmi': the cell is empty", with_cell("")),
    "text": Case("site-b.csv, line 6, column 'bmi': the cell is not a number", with_cell(CANARY)),
    "nan": Case("line 6, column 'bmi': the cell is not a finite number", with_cell("nan")),
    "inf": Case("line 6, column 'bmi': the cell is not a finite number", with_cell("-inf")),
    "a number in no unit": Case("line 6, column 'bmi': the cell is beyond 1e+90", with_cell("7731e200")),
    "a row too short": Case("line 6: 2 cells where the header has 3 columns", ROWS + "7731,2\n"),
    "empty file": Case("site-b.csv is empty: it needs a header line and rows", ""),
    "header without rows": Case("site-b.csv has a header and no rows", HEADER),
    "rows without header": Case("site-b.csv, line 1: numbers stand where", f"{CANARY_NUMBER},7731,1\n"),
    "label not 0 or 1": Case("line 6, column 'y': the cell is the label and neither 0 nor 1", ROWS + "1,2,7731\n"),
    "column name twice": Case("site-b.csv, line 1: the column name 'age' stands twice", "age,age,y\n7731,1,1\n"),
    "not UTF-8": Case("site-b.csv is not UTF-8 text", ROWS.encode("utf-16")),
    "quote not closed": Case("site-b.csv, line 6: not well-formed CSV", ROWS + f'"{CANARY},1,1\n'),
    "no such data": Case("there is no file or folder nowhere", replaces={"--data": "nowhere"}),
    "data of another kind": Case(
        "pyproject.toml is not a .csv, .npz or .parquet file", replaces={"--data": "pyproject.toml"}
    ),
    "a folder without data": Case("the folder fedmq has no .csv, .npz or .parquet file", replaces={"--data": "fedmq"}),
    # --- what is asked for
    "no data": Case("Missing option '--data'", replaces={"--data": None}),
    "no out": Case("Missing option '--out'", replaces={"--out": None}),
    "unknown option": Case("No such option '--colour'", options=("--colour", CANARY)),
    "unknown strategy": Case(
        "there is no strategy 'fedsomething': choose one of", options=("--strategy", "fedsomething")
    ),
    "an option the strategy does not have": Case(
        "fedavg has no option buffer_size; it has", options=("--strategy", "fedavg", "--buffer-size", "3")
    ),
    "an option of another strategy": Case(
        "fedbuff has no option mixing_rate", options=("--strategy", "fedbuff", "--mixing-rate", "0.5")
    ),
    "text for a number": Case("l2: Input should be a valid number", options=("--l2", CANARY)),
    "a number below its bound": Case("l2: Input should be greater than or equal to 0", options=("--l2", "-7731")),
    "a fraction for a count": Case(
        "max_versions: Input should be a valid integer", options=("--max-versions", "1.7731")
    ),
    "no version at all": Case(
        "max_versions: Input should be greater than or equal to 1", options=("--max-versions", "0")
    ),
    "nan for a number": Case("l2: Input should be a finite number", options=("--l2", "nan")),
    "infinity for a number": Case("learning_rate: Input should be a finite number", options=("--learning-rate", "inf")),
    "a seed beyond what messages hold": Case("seed: a whole number is at most 2^53", options=("--seed", "9" * 20)),
    "a mixing rate beyond one": Case("mixing", options=("--strategy", "fedasync", "--mixing-rate", "2")),
    "a word that is none": Case("solver: Input should be 'gradient-descent'", options=("--solver", CANARY)),
    "no site to slow": Case("--slow: there is no site 'c'; there are a, b", options=("--slow", "c=7731")),
    "no factor to slow by": Case("--slow: 'a' is not SITE=FACTOR", options=("--slow", "a")),
    "a factor under one": Case("--slow: the factor of 'a' is at least 1", options=("--slow", "a=0.5")),
    "a factor that is no number": Case("--slow: the factor of 'a' is at least 1", options=("--slow", "a=nan")),
    "text for seconds": Case("Invalid value for '--fit-seconds'", options=("--fit-seconds", "soon")),
    # --- the broker
    "no URL of a broker": Case("broker: http://u:***@h/ is not the URL", options=("--broker", f"http://u:{CANARY}@h/")),
    "a URL that is broken": Case("special characters", options=("--broker", f"amqp://u:{CANARY}@[::1/")),
    "a broker without password": Case("broker: no password for h:5672", options=("--broker", "amqp://u@h/")),
    # --- where the model goes
    "out is a file": Case("LICENSE is not a folder: name another one", replaces={"--out": "LICENSE"}),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_wrong_input_ends_with_one_sentence_and_writes_nothing(
    case: Case, tmp_path: Path, fedmq: Callable[..., Ended]
) -> None:
    assert_refused(fedmq(*arguments_of(case, tmp_path)), case.sentence)
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["text", "unknown option", "a broker without password"])
def test_it_is_the_same_for_a_real_process(name: str, tmp_path: Path) -> None:
    case = BAD[name]
    assert_refused(in_a_process(*arguments_of(case, tmp_path)), case.sentence)
    assert_nothing_written(tmp_path)


def test_the_folder_of_the_data_is_not_replaced_by_the_model(tmp_path: Path, fedmq: Callable[..., Ended]) -> None:
    given = arguments_of(Case(""), tmp_path)
    data = Path(given[given.index("--data") + 1])
    before = sorted(path.name for path in data.iterdir())
    given[given.index("--out") + 1] = str(data)
    assert_refused(fedmq(*given), "and would be replaced: name a folder of its own for the model")
    assert sorted(path.name for path in data.iterdir()) == before


# --- settings of the services --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "content", "sentence"),
    [
        (
            "aggregator",
            f'sead = "{CANARY}"',
            "there is no setting 'sead'; there are adapt_steps, adaptivity, batch_size,",
        ),
        ("participant", f'labels = "{CANARY}"', "there is no setting 'labels'; there are aggregator_user"),
        ("aggregator", f'participants = ["a", "{CANARY}.*"]', "participants.1: use letters, digits"),
        ("aggregator", 'participants = ["a", "a"]', "participants: a name stands twice"),
        ("aggregator", 'participants = ["a"]\nstrategy = "fedsomething"', "there is no strategy 'fedsomething'"),
        ("aggregator", "", "participants is missing: set it in the file, as --participants, or as FEDMQ_PARTICIPANTS"),
        ("aggregator", f"broker = {CANARY}", "is not TOML"),
        ("participant", f'name = "a"\nlabel = "y"\ndata = "nowhere-{CANARY[:0]}.csv"', "cannot be read: No such file"),
    ],
)
def test_a_wrong_file_of_settings_ends_with_one_sentence(
    tmp_path: Path, fedmq: Callable[..., Ended], command: str, content: str, sentence: str
) -> None:
    config = tmp_path / "fedmq.toml"
    config.write_text(content)
    assert_refused(fedmq(command, "--config", str(config)), sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["fedmq.toml"]


@pytest.mark.parametrize("command", ["aggregator", "participant"])
def test_a_missing_file_of_settings_is_named(command: str, tmp_path: Path, fedmq: Callable[..., Ended]) -> None:
    config = tmp_path / "nowhere.toml"
    assert_refused(fedmq(command, "--config", str(config)), f"{config} cannot be read: No such file or directory")


def test_a_wrong_value_in_the_environment_is_named_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fedmq: Callable[..., Ended]
) -> None:
    monkeypatch.setenv("FEDMQ_SEED", CANARY)
    assert_refused(fedmq(*arguments_of(Case(""), tmp_path)), "the settings: seed: Input should be a valid integer")


# --- a broker that is not there ------------------------------------------------------------------------


def test_an_unreachable_broker_is_told_within_seconds_and_without_its_password(tmp_path: Path) -> None:
    """Slow: the command tries for ten seconds, since a broker may be about to start."""
    began = time.monotonic()
    case = Case("", options=("--broker", f"amqp://u:{CANARY}@127.0.0.1:1/"))
    ended = in_a_process(*arguments_of(case, tmp_path), timeout=30)
    assert_refused(ended, "127.0.0.1:1")
    assert time.monotonic() - began < 15
    assert_nothing_written(tmp_path)


# --- what looks wrong and is not -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(HEADER + "63,27.5,1\n45,31,1\n50,22.25,1\n41,30,1\n", id="one class only"),
        pytest.param(HEADER + "63,27.5,1\n45,31,0\n50,22.25,0\n", id="three rows"),
        pytest.param(HEADER + "63,27.5,1\n", id="one row"),
        pytest.param(HEADER + "63,30,1\n45,30,0\n50,30,0\n", id="a column that is constant"),
        pytest.param("\ufeff" + ROWS.replace("\n", "\r\n"), id="byte order mark and CRLF"),
        pytest.param("y,bmi,age\n1,27.5,63\n0,31,45\n", id="columns in another order"),
        pytest.param(HEADER + "1e90,1e-300,1\n-1e90,0,0\n", id="the largest numbers there may be"),
    ],
)
def test_small_and_odd_sites_train(content: str, tmp_path: Path, fedmq: Callable[..., Ended]) -> None:
    ended = fedmq(*arguments_of(Case("", content), tmp_path), "--max-versions", "30")
    assert (ended.code, "Traceback" in ended.err) == (0, False)
    assert "The model is in" in ended.out
    assert (tmp_path / "model" / "model.json").is_file()


def test_the_bare_command_shows_what_there_is(fedmq: Callable[..., Ended]) -> None:
    ended = fedmq()
    assert (ended.code, ended.err) == (0, "")
    for command in ("demo", "train", "aggregator", "participant"):
        assert f"\n  {command} " in ended.out
