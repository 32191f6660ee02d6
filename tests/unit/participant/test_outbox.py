"""The outbox: what was put is there, in the same bytes, whatever happens to the process."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from broker.checksum import with_checksum
from participant.errors import OutboxError, ParticipantError
from participant.outbox import Entry, Outbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST, SECOND = Entry(1, "update", b"\x00\xff body \x00"), Entry(2, "evaluation", b"\x01" * 5000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file for an outbox that is not there yet."""
    return tmp_path / "h1.sqlite"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    outbox = Outbox(path, owner="heart/h1", incarnation="first")
    yield outbox
    outbox.close()


def reopened(path: Path, *, owner: str = "heart/h1") -> Outbox:
    """Open the file as the next life of its owner would."""
    return Outbox(path, owner=owner, incarnation="another")


def test_a_new_outbox_is_empty(outbox: Outbox) -> None:
    assert outbox.entries() == []
    assert outbox.last_sequence == 0
    assert outbox.incarnation == "first"


def test_an_entry_comes_back_in_the_same_bytes(outbox: Outbox) -> None:
    outbox.put(FIRST)
    assert outbox.entries() == [FIRST]
    assert outbox.last_sequence == 1


def test_with_one_in_flight_the_next_one_settles_what_came_before(outbox: Outbox) -> None:
    """A settlement that a crash kept from being written must not bring an old contribution back."""
    outbox.put(FIRST)
    outbox.put(SECOND)
    assert outbox.entries() == [SECOND]
    assert outbox.last_sequence == 2


def test_what_is_settled_is_forgotten_and_its_number_is_not(outbox: Outbox) -> None:
    outbox.put(SECOND)
    outbox.settle(1)
    assert outbox.entries() == [SECOND]
    outbox.settle(9)
    assert outbox.entries() == []
    assert outbox.last_sequence == 2


def test_settling_twice_or_what_never_was_changes_nothing(outbox: Outbox) -> None:
    outbox.put(FIRST)
    outbox.settle(0)
    assert outbox.entries() == [FIRST]
    outbox.settle(1)
    outbox.settle(1)
    assert outbox.entries() == []


def test_it_survives_being_reopened(outbox: Outbox, path: Path) -> None:
    outbox.put(FIRST)
    outbox.put(SECOND)
    outbox.close()
    again = reopened(path)
    assert again.entries() == [SECOND]
    assert again.last_sequence == 2
    assert again.incarnation == "first", "it is still the same self"
    again.close()


def test_an_outbox_whose_file_was_lost_is_another_self(outbox: Outbox, path: Path) -> None:
    outbox.put(FIRST)
    outbox.close()
    for file in path.parent.iterdir():
        file.unlink()
    again = reopened(path)
    assert (again.incarnation, again.last_sequence, again.entries()) == ("another", 0, [])
    again.close()


def test_its_salt_is_drawn_once_and_for_itself_alone(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    salt = outbox.salt
    assert len(bytes.fromhex(salt)) == 16
    outbox.put(FIRST)
    outbox.close()
    again, other = reopened(path), Outbox(tmp_path / "h2.sqlite", owner="heart/h2", incarnation="first")
    assert again.salt == salt != other.salt
    again.close()
    other.close()


def test_what_put_returned_from_is_on_the_disk_and_not_only_with_the_system(outbox: Outbox) -> None:
    """A power failure cannot be had in a test: SQLite is asked whether it waits for the disk (2 is FULL)."""
    assert outbox._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert outbox._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_number_is_used_once_and_what_it_meant_stays(outbox: Outbox) -> None:
    outbox.put(FIRST)
    with pytest.raises(OutboxError, match=r"could not be written"):
        outbox.put(Entry(1, "update", b"other bytes"))
    assert outbox.entries() == [FIRST]
    outbox.put(SECOND)


def test_in_memory_it_lives_as_long_as_its_process() -> None:
    for incarnation in ("one", "two"):
        outbox = Outbox(":memory:", owner="heart/h1", incarnation=incarnation)
        assert (outbox.incarnation, outbox.entries()) == (incarnation, [])
        outbox.put(FIRST)
        assert outbox.entries() == [FIRST]
        outbox.close()


# --- what cannot be used -------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["heart/h2", "lung/h1"])
def test_another_owner_is_refused_and_spoils_nothing(outbox: Outbox, path: Path, owner: str) -> None:
    outbox.put(FIRST)
    outbox.close()
    with pytest.raises(OutboxError, match="belongs to another participant: give each its own state folder"):
        reopened(path, owner=owner)
    again = reopened(path)
    assert again.entries() == [FIRST]
    again.close()


def test_a_file_of_another_layout_is_refused(outbox: Outbox, path: Path) -> None:
    outbox.close()
    database = sqlite3.connect(path)
    database.execute(
        "UPDATE meta SET value = ?, checksum = ? WHERE key = ?", (*with_checksum("layout", "3")[1:], "layout")
    )
    database.commit()
    database.close()
    with pytest.raises(OutboxError, match="written by another version of fedmq"):
        reopened(path)


def written_by_layout_1(path: Path, *, layout: str = "1") -> None:
    """Make the file that a former version would have left."""
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    database.execute("CREATE TABLE outbox (sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL)")
    meta = {"layout": layout, "owner": "heart/h1", "incarnation": "first", "last": "2", "salt": "00"}
    database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    database.execute("INSERT INTO outbox VALUES (2, 'evaluation', ?)", (SECOND.body,))
    database.commit()
    database.close()


def test_a_file_without_checksums_is_taken_over_with_all_that_it_has(path: Path) -> None:
    written_by_layout_1(path)
    for _ in range(2):
        outbox = reopened(path)
        assert (outbox.incarnation, outbox.salt, outbox.last_sequence) == ("first", "00", 2)
        assert outbox.entries() == [SECOND]
        outbox.close()


def test_an_outbox_from_before_there_was_a_salt_gets_one_and_keeps_what_it_has(path: Path) -> None:
    written_by_layout_1(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM meta WHERE key = 'salt'")
    with closing(reopened(path)) as outbox:
        salt = outbox.salt
        assert (outbox.entries(), outbox.incarnation) == ([SECOND], "first")
    with closing(reopened(path)) as later:
        assert later.salt == salt != ""


def test_taking_over_is_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_by_layout_1(path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("participant.outbox.with_checksum", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reopened(path)
    outbox = reopened(path)
    assert outbox.entries() == [SECOND]
    outbox.close()


def test_a_file_without_checksums_of_an_unknown_layout_is_refused(path: Path) -> None:
    written_by_layout_1(path, layout="0")
    with pytest.raises(OutboxError, match="written by another version of fedmq"):
        reopened(path)


def test_its_pages_suit_large_vectors(outbox: Outbox) -> None:
    assert outbox._database.execute("PRAGMA page_size").fetchone() == (32768,)


@pytest.mark.parametrize(
    "content", [b"a text file, and long enough to be seen as one " * 200, b"SQLite format 3\x00" + b"\x07" * 5000]
)
def test_a_file_that_is_no_outbox_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(OutboxError, match=f"the outbox {path} cannot be opened"):
        reopened(path)
    assert path.read_bytes() == content


def test_somebody_elses_tables_are_refused(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE meta (something, else_)")
    database.commit()
    database.close()
    with pytest.raises(OutboxError, match=f"{path} is no outbox of ours: give this participant a state folder"):
        reopened(path)


# --- what is damaged ------------------------------------------------------------------------------

NEW_FOLDER = r"damaged.*start this participant with a new state folder; it counts as a new one then"


@pytest.mark.parametrize("body", [FIRST.body, bytes(200_000)])
def test_an_entry_with_another_bit_is_not_sent(outbox: Outbox, path: Path, body: bytes) -> None:
    outbox.put(Entry(1, "update", body))
    outbox.close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE outbox SET body = ?", (bytes([body[0] ^ 1]) + body[1:],))
    again = reopened(path)
    with pytest.raises(OutboxError, match=NEW_FOLDER):
        again.entries()
    again.close()


@pytest.mark.parametrize("key", ["incarnation", "salt", "last", "layout", "owner"])
def test_whatever_it_knows_of_itself_is_not_believed_with_another_letter(outbox: Outbox, path: Path, key: str) -> None:
    outbox.close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE meta SET value = value || '0' WHERE key = ?", (key,))

    def use() -> None:
        with closing(reopened(path)) as again:
            assert again.incarnation
            assert again.salt
            assert again.last_sequence == 0

    with pytest.raises(OutboxError, match=NEW_FOLDER):
        use()


@pytest.mark.parametrize("n_bytes", [100, 5000, 40_000, 98_304])
def test_a_file_that_was_cut_off_is_told_with_what_to_do(outbox: Outbox, path: Path, n_bytes: int) -> None:
    outbox.put(Entry(1, "update", bytes(100_000)))
    outbox.close()
    path.write_bytes(path.read_bytes()[:n_bytes])

    def use() -> None:
        with closing(reopened(path)) as again:
            again.entries()

    with pytest.raises(OutboxError, match=NEW_FOLDER):
        use()


def test_a_bit_that_flips_anywhere_is_told_in_a_sentence_or_makes_no_difference(outbox: Outbox, path: Path) -> None:
    outbox.put(SECOND)
    kept = (outbox.incarnation, outbox.salt, outbox.last_sequence, outbox.entries())
    outbox.close()
    whole, rng = path.read_bytes(), random.Random(3)
    used = [at for at, byte in enumerate(whole) if byte]
    n_found = 0
    for at in rng.sample(used, 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            with closing(reopened(path)) as again:
                assert (again.incarnation, again.salt, again.last_sequence, again.entries()) == kept, at
        except OutboxError:
            n_found += 1
    assert n_found > 100


def test_a_disk_that_is_full_is_told_and_with_room_it_goes_on(path: Path) -> None:
    """In a process of its own, whose files may not grow beyond a limit."""
    with subprocess.Popen([sys.executable, "-c", _UNTIL_FULL, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert "could not be written" in said[0]
    assert "check its folder, the free space" in said[0]
    assert said[1:] == ["[1]", "[2]"]


_UNTIL_FULL = """
import resource, signal, sys
from participant.errors import OutboxError
from participant.outbox import Entry, Outbox
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
outbox = Outbox(sys.argv[1], owner="heart/h1", incarnation="first")
outbox.put(Entry(1, "update", bytes(1000)))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
try:
    outbox.put(Entry(2, "update", bytes(2_000_000)))
except OutboxError as error:
    print(error)
print([each.sequence for each in outbox.entries()])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
outbox.put(Entry(2, "update", bytes(2_000_000)))
outbox.close()
print([each.sequence for each in Outbox(sys.argv[1], owner="heart/h1", incarnation="x").entries()])
"""


@pytest.mark.parametrize("where", ["missing/h1.sqlite", "."])
def test_a_place_where_no_file_can_be_is_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(OutboxError, match=r"cannot be opened .*check its folder, the free space and who may write"):
        reopened(tmp_path / where)


def test_a_full_disk_is_told_and_what_was_there_stays(outbox: Outbox) -> None:
    outbox.put(FIRST)
    (pages,) = outbox._database.execute("PRAGMA page_count").fetchone()
    outbox._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutboxError, match=r"could not be written .*full"):
        outbox.put(Entry(2, "update", b"\x00" * 1_000_000))
    assert outbox.entries() == [FIRST]
    assert outbox.last_sequence == 1


def test_an_interruption_while_it_writes_leaves_what_was_there(outbox: Outbox) -> None:
    outbox.put(FIRST)

    def interrupted() -> None:
        with outbox._transaction("could not be written"):
            outbox._database.execute("DELETE FROM outbox")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert outbox.entries() == [FIRST]


def test_a_closed_outbox_says_so_as_an_outbox_error(outbox: Outbox) -> None:
    outbox.close()
    with pytest.raises(OutboxError, match=r"could not be read .*closed"):
        outbox.entries()
    with pytest.raises(OutboxError, match=r"could not be written .*closed"):
        outbox.put(FIRST)


def test_its_errors_are_told_by_the_commands() -> None:
    assert issubclass(OutboxError, ParticipantError)


# --- kill -9 --------------------------------------------------------------------------------------

_PUTS_FOR_EVER = """
import sys
from participant.outbox import Entry, Outbox
outbox = Outbox(sys.argv[1], owner="heart/h1", incarnation="first")
sequence = outbox.last_sequence
while True:
    sequence += 1
    outbox.put(Entry(sequence, "update", sequence.to_bytes(2, "big") * 10_000))
    print(sequence, flush=True)
"""


def test_kill_9_while_it_puts_loses_nothing_that_was_returned_from_put(path: Path) -> None:
    returned = 0
    for n_puts in (1, 4, 9):
        with subprocess.Popen([sys.executable, "-c", _PUTS_FOR_EVER, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(n_puts):
                returned = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            said = process.stdout.read().split()
            returned = int(said[-1]) if said else returned
        outbox = reopened(path)
        [entry] = outbox.entries()
        # The next one may be there, put and not told yet; never half of one.
        assert entry.sequence - returned in {0, 1}
        assert entry.body == entry.sequence.to_bytes(2, "big") * 10_000
        assert (outbox.last_sequence, outbox.incarnation) == (entry.sequence, "first")
        outbox.close()
