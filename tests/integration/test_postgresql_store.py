"""The store on a real PostgreSQL: two aggregators, one of them frozen or killed, and a server that goes away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest
from servers.postgresql import PASSWORD, USER, PostgreSQL

from aggregator.errors import FencedError, StoreError
from aggregator.events import Include
from aggregator.settings import AggregatorSettings
from aggregator.store import Commit, ReleasedBody
from aggregator.store.opening import open_store
from aggregator.store.postgresql import Limits, PostgreSQLStore
from aggregator.testing import record

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(120)]

#: A takeover may take so long, whatever the other one is in the middle of.
LIMIT_SECONDS = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def federation(request: pytest.FixtureRequest) -> str:
    """Name a federation of this test's own."""
    return f"f{sha256(request.node.name.encode()).hexdigest()[:16]}"


@contextmanager
def opened(server: PostgreSQL, federation: str, **given: Any) -> Iterator[PostgreSQLStore]:
    with closing(PostgreSQLStore(server.url(), federation, **given)) as store:
        yield store


def asked(server: PostgreSQL, query: str) -> list[Any]:
    """Return what the database answers, if anything."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        cursor = connection.execute(query)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def end_sessions(server: PostgreSQL, federation: str) -> None:
    """Cut off whoever uses the federation's store."""
    name = f"fedmq_{federation}"
    asked(server, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{name}'")  # noqa: S608 - our own names


# --- one database, several federations ------------------------------------------------------


def test_two_federations_in_one_database_know_nothing_of_one_another(server: PostgreSQL) -> None:
    with opened(server, "hearts") as hearts, opened(server, "Lungs-2") as lungs:
        hearts.commit(Commit(hearts.take_over(), {"a": b"heart"}, records=(record(1),)))
        assert lungs.take_over() == 1
        lungs.commit(Commit(1, {"a": b"lung"}, records=(record(1),)))
        assert (hearts.cells(), lungs.cells()) == ({"a": b"heart"}, {"a": b"lung"})


def test_federations_whose_names_are_too_long_to_tell_apart_are_told(server: PostgreSQL) -> None:
    first, second = "f" * 62 + "1", "f" * 62 + "2"
    with opened(server, first), pytest.raises(StoreError, match="is not that of federation"):
        PostgreSQLStore(server.url(), second)


def test_several_that_open_a_new_store_at_once_all_have_it(server: PostgreSQL, federation: str) -> None:
    stores: list[PostgreSQLStore] = []
    threads = [
        threading.Thread(target=lambda: stores.append(PostgreSQLStore(server.url(), federation))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.take_over() for store in stores) == [1, 2, 3, 4, 5, 6]
    for store in stores:
        store.close()


def test_who_only_looks_changes_nothing_and_sees_one_moment(server: PostgreSQL, federation: str) -> None:
    with pytest.raises(StoreError, match="holds no federation"):
        PostgreSQLStore(server.url(), federation, read_only=True)
    with opened(server, federation) as store:
        store.commit(Commit(1, {"a": b"1"}))
        with opened(server, federation, read_only=True) as looking:
            assert looking.cells() == {"a": b"1"}
            store.commit(Commit(1, {"a": b"2"}))
            assert (looking.cells(), looking.defects()) == ({"a": b"1"}, [])
            with pytest.raises(StoreError):
                looking.take_over()


def test_the_settings_say_which_store_and_where_its_password_is(
    server: PostgreSQL, federation: str, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    url = f"postgresql://{USER}@127.0.0.1:{server.port}/postgres"
    settings = AggregatorSettings(
        federation=federation, participants=["a"], state_dir=tmp_path, store=url, store_password_file=password
    )
    with closing(open_store(settings)) as store:
        assert store.take_over() == 1
    with pytest.raises(StoreError, match="refuses the user or the password"):
        open_store(settings.model_copy(update={"store_password_file": None}))
    file = AggregatorSettings(federation=federation, participants=["a"], state_dir=tmp_path)
    with closing(open_store(file)):
        assert (tmp_path / "aggregator.sqlite").exists()


# --- bounds and damage ----------------------------------------------------------------------


def test_the_ledger_is_bounded_there_too(server: PostgreSQL, federation: str) -> None:
    with opened(server, federation, keep_ledger=5) as store:
        store.commit(Commit(1, {}, records=(record(1),)))
        for number in range(2, 20):
            store.commit(Commit(1, {}, records=(record(number, verdict="stale"),), version_hashes={number: "x"}))
        assert [entry.base_version for entry in store.ledger()] == [1, 15, 16, 17, 18, 19]
        assert list(store.versions()) == [15, 16, 17, 18, 19]


@pytest.mark.parametrize("table", ["meta", "cells", "ledger", "versions", "releases"])
def test_what_is_not_what_was_written_is_found(server: PostgreSQL, federation: str, table: str) -> None:
    with opened(server, federation) as store:
        releases = (ReleasedBody(1, 1, b"x"),)
        store.commit(Commit(1, {"a": b"1"}, (record(1),), (Include("a:i1:1", 1, 0.5),), {1: "x"}, releases))
        assert store.defects() == []
        checksum = r"'\x0000000000000000'"
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f'UPDATE "fedmq_{federation}".{table} SET checksum = {checksum}')  # type: ignore[arg-type]  # noqa: S608 - our own names
        assert store.defects()
        assert f"in table {table}, what stands at" in store.defects()[0]


# --- what cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"password": "wr@ng-s3cret"}, "refuses the user or the password"),
        ({"user": "nobody"}, "refuses the user or the password"),
        ({"database": "nowhere"}, "there is no such database"),
    ],
)
def test_why_it_cannot_be_opened_is_told_without_the_password(
    server: PostgreSQL, parts: dict[str, str], words: str
) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        PostgreSQLStore(server.url(**parts), "heart")
    assert str(server.port) in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url", ["postgresql://u:s3cret@h:notaport/d", "postgresql://u:s3@cret%zz@h/d", "postgresql://["]
)
def test_a_url_that_is_none_is_told_without_the_password(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        PostgreSQLStore(url, "heart", limits=Limits(connect_seconds=1))
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)


def test_nobody_there_is_told_at_once(server: PostgreSQL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(StoreError, match="cannot be reached"):
            PostgreSQLStore(f"postgresql://u:p@127.0.0.1:{port}/d", "heart", limits=Limits(connect_seconds=2))
        assert time.monotonic() - began < LIMIT_SECONDS


# --- the server goes away -------------------------------------------------------------------


def test_the_store_goes_on_when_the_server_is_back(federation: str) -> None:
    with PostgreSQL() as server, opened(server, federation) as store, ThreadPoolExecutor(1) as pool:
        store.commit(Commit(store.take_over(), {"a": b"1"}))
        server.stop()
        commit = pool.submit(store.commit, Commit(1, {"a": b"2"}, records=(record(1),)))
        server.start()  # by this thread, with which it would end
        commit.result()
        assert (store.cells(), len(list(store.ledger()))) == ({"a": b"2"}, 1)


def test_a_server_that_is_starting_is_waited_for(federation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = ["the database system is starting up"] * 2

    def connect(*given: Any, **named: Any) -> Any:
        if refusals:
            raise psycopg.OperationalError(refusals.pop())
        return connect_really(*given, **named)

    with PostgreSQL() as server, monkeypatch.context() as patch:
        connect_really = psycopg.connect
        patch.setattr(psycopg, "connect", connect)
        with opened(server, federation) as store:
            assert store.take_over() == 1
    assert refusals == []


def test_who_is_cut_off_while_all_connections_are_taken_goes_on_when_one_is_free(
    server: PostgreSQL, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(server, f"CREATE ROLE {federation} LOGIN PASSWORD 'x' CONNECTION LIMIT 2")
    asked(server, f"GRANT CREATE ON DATABASE postgres TO {federation}")
    refused, connect_really = threading.Event(), psycopg.connect

    def connect(*given: Any, **named: Any) -> Any:
        try:
            return connect_really(*given, **named)
        except psycopg.OperationalError:
            refused.set()
            raise

    url = server.url(user=federation, password="x")
    with closing(PostgreSQLStore(url, federation)) as store, ThreadPoolExecutor(1) as pool:
        with psycopg.connect(url):
            asked(server, f"ALTER ROLE {federation} CONNECTION LIMIT 1")
            end_sessions(server, federation)
            monkeypatch.setattr(psycopg, "connect", connect)
            commit = pool.submit(store.commit, Commit(1, {"a": b"1"}))
            assert refused.wait(LIMIT_SECONDS)
            with pytest.raises(StoreError, match="it has no connection left"):
                PostgreSQLStore(url, federation, limits=Limits(patience_seconds=0))
        commit.result()
        assert store.cells() == {"a": b"1"}


def test_a_server_that_stays_away_is_told_in_a_sentence(federation: str) -> None:
    with PostgreSQL() as server, opened(server, federation, limits=Limits(patience_seconds=1)) as store:
        server.stop()
        with pytest.raises(StoreError, match="could not be written: it cannot be reached, or went away"):
            store.commit(Commit(1, {"a": b"1"}))
        server.start()
        store.commit(Commit(1, {"a": b"2"}))
        assert store.cells() == {"a": b"2"}


def test_who_closes_it_does_not_wait_for_the_server(federation: str) -> None:
    with PostgreSQL() as server, opened(server, federation) as store:
        server.stop()
        closing_ = threading.Timer(0.5, store.close)
        closing_.start()
        began = time.monotonic()
        with pytest.raises(StoreError, match="it is closed"):
            store.commit(Commit(1, {"a": b"1"}))
        assert time.monotonic() - began < LIMIT_SECONDS


def test_a_server_that_falls_silent_does_not_hold_us_for_ever(server: PostgreSQL, federation: str) -> None:
    limits = Limits(transaction_seconds=1, patience_seconds=1, connect_seconds=2)
    with opened(server, federation, limits=limits) as store:
        [(pid,)] = asked(server, f"SELECT pid FROM pg_stat_activity WHERE application_name = 'fedmq_{federation}'")  # noqa: S608
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            store.commit(Commit(1, {"a": b"1"}))
            assert 1.0 <= time.monotonic() - began < LIMIT_SECONDS
        finally:
            os.kill(pid, signal.SIGCONT)
        assert store.cells() == {"a": b"1"}


class CutOff:
    """Forwards to the server, and closes the connection once COMMIT has been sent: before it arrives, or after."""

    def __init__(self, server: PostgreSQL, *, arrives: bool) -> None:
        self._port, self._arrives = server.port, arrives
        self.armed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pump, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self._pump, args=(upstream, client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self.armed and b"COMMIT\x00" in data and source.getsockname()[1] == self.port:
                    self.armed = False
                    if self._arrives:
                        # The client is gone first: it never hears how it went.
                        source.shutdown(socket.SHUT_RDWR)
                        sink.sendall(data)
                    break
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()


@pytest.mark.parametrize("arrives", [True, False])
def test_a_commit_whose_end_was_not_heard_is_done_once(server: PostgreSQL, federation: str, *, arrives: bool) -> None:
    with closing(CutOff(server, arrives=arrives)) as link:
        url = server.url().replace(f":{server.port}/", f":{link.port}/")
        with closing(PostgreSQLStore(url, federation)) as store:
            epoch = store.take_over()
            store.commit(Commit(epoch, {"a": b"1"}, records=(record(1),)))
            link.armed = True
            store.commit(
                Commit(epoch, {"a": b"2"}, (record(2),), (Include("a:i1:1", 1, 1.0), Include("a:i1:2", 1, 1.0)))
            )
            assert not link.armed, "it was cut off"
            assert store.cells() == {"a": b"2"}
            assert [entry.included_in for entry in store.ledger()] == [1, 1]
            store.commit(Commit(epoch, {"a": b"3"}))
            link.armed = True
            epoch = store.take_over()
            assert not link.armed, "it was cut off"
            store.commit(Commit(epoch, {"a": b"4"}))
            assert store.cells() == {"a": b"4"}


# --- the database goes back -----------------------------------------------------------------


class Copy:
    """A federation's tables as they are now, to be put back underneath whoever uses them."""

    def __init__(self, server: PostgreSQL, federation: str) -> None:
        self._server, self._schema = server, f"fedmq_{federation}"
        self._rows = {name: self._ask(f'SELECT * FROM "{self._schema}".{name}') for name in ("meta", "cells")}  # noqa: S608 - our own names

    def put_back(self) -> None:
        with psycopg.connect(self._server.url()) as connection:
            for name, rows in self._rows.items():
                connection.execute(f'DELETE FROM "{self._schema}".{name}')  # noqa: S608
                for row in rows:
                    connection.execute(f'INSERT INTO "{self._schema}".{name} VALUES (%s, %s, %s)', row)  # noqa: S608
        end_sessions(self._server, self._schema.removeprefix("fedmq_"))

    def _ask(self, query: str) -> list[Any]:
        return asked(self._server, query)


@pytest.mark.parametrize("back_to", ["before it took over", "when it took over", "a commit ago"])
@pytest.mark.parametrize("another_took_over", [False, True])
def test_what_went_back_underneath_is_not_written_over(
    server: PostgreSQL, federation: str, back_to: str, *, another_took_over: bool
) -> None:
    with opened(server, federation) as store:
        copies = {"before it took over": Copy(server, federation)}
        epoch = store.take_over()
        copies["when it took over"] = Copy(server, federation)
        store.commit(Commit(epoch, {"a": b"1"}))
        copies["a commit ago"] = Copy(server, federation)
        store.commit(Commit(epoch, {"a": b"2", "b": b"2"}))
        copies[back_to].put_back()
        if another_took_over:
            with opened(server, federation) as other:
                other.take_over()
        before = store.cells()
        words = "taken over" if another_took_over and back_to != "before it took over" else "it has gone back"
        with pytest.raises(StoreError, match=words):
            store.commit(Commit(epoch, {"b": b"3"}))
        assert store.cells() == before
        store.commit(Commit(store.take_over(), {"b": b"4"}))
        assert store.cells() == {**before, "b": b"4"}


def test_who_took_over_and_wrote_nothing_yet_knows_its_epoch_from_that_of_another(
    server: PostgreSQL, federation: str
) -> None:
    with opened(server, federation) as store, opened(server, federation) as other:
        copy = Copy(server, federation)
        assert store.take_over() == 1
        copy.put_back()
        assert other.take_over() == 1
        with pytest.raises(StoreError, match="it has gone back"):
            store.commit(Commit(1, {"a": b"1"}))
        other.commit(Commit(1, {"a": b"2"}))
        other.commit(Commit(1, {"a": b"3"}))
        assert store.cells() == {"a": b"3"}


# --- two aggregators ------------------------------------------------------------------------

#: Takes over, commits for ever, and says the number of each commit; or stops in the middle of one, as it is told.
_AGGREGATOR = """
import os, signal, sys
from aggregator.events import Include
from aggregator.store import Commit
from aggregator.store.postgresql import PostgreSQLStore
from aggregator.testing import record

url, federation, how = sys.argv[1:]
store = PostgreSQLStore(url, federation)
epoch = store.take_over()
number = int(store.cells().get("number", b"0"))
times = [False, True]  # once
if how == "in-the-middle":
    def stop(statement, rows, execute_many=store._execute_many):
        execute_many(statement, rows)
        if number == 3 and times and times.pop():
            print("stopped", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
    store._execute_many = stop
elif how == "in-a-statement":
    import socket
    def stop(statement, rows, execute_many=store._execute_many):
        if number == 3 and times and times.pop():  # half of a message, as if it were frozen while it sends a large one
            link = socket.socket(fileno=os.dup(store._connection.fileno()))
            link.sendall(b"P" + (1000000).to_bytes(4, "big") + b"x" * 1000)
            print("stopped", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        execute_many(statement, rows)
    store._execute_many = stop
while True:
    number += 1
    records, includes = (record(number),), (Include(f"a:i1:{number}", number, 1.0),)
    cells = {"number": b"%d" % number, "by": b"%d" % epoch}
    store.commit(Commit(epoch, cells, records, includes, {number: str(number)}))
    print(number, flush=True)
"""


@contextmanager
def aggregator(server: PostgreSQL, federation: str, how: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _AGGREGATOR, server.url(), federation, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    assert process.stderr is not None
    pytest.fail(process.stderr.read())


@pytest.mark.parametrize("how", ["between", "in-the-middle", "in-a-statement"])
def test_whoever_is_frozen_keeps_nobody_waiting_and_comes_back_fenced(
    server: PostgreSQL, federation: str, how: str
) -> None:
    with aggregator(server, federation, how) as old:
        if how == "between":
            until(old, "3")
            old.send_signal(signal.SIGSTOP)
        else:
            until(old, "stopped")  # it stops itself
        with opened(server, federation) as new:
            began = time.monotonic()
            assert new.take_over() == 2
            last = int(new.cells()["number"])
            new.commit(Commit(2, {"by": b"2"}))
            assert time.monotonic() - began < LIMIT_SECONDS
            old.send_signal(signal.SIGCONT)
            _, said = old.communicate(timeout=30)
            assert "FencedError: another aggregator has taken over" in said
            assert new.cells() == {"number": b"%d" % last, "by": b"2"}
            assert [entry.included_in for entry in new.ledger()] == list(range(1, last + 1))


def test_whoever_is_killed_in_the_middle_keeps_nobody_waiting_and_leaves_nothing_half(
    server: PostgreSQL, federation: str
) -> None:
    for times in range(1, 6):
        with aggregator(server, federation) as old:
            assert old.stdout is not None
            before = old.stdout.readline()
            old.kill()
            said = [before, *old.stdout.read().splitlines(keepends=True)]
        number = int([line for line in said if line.endswith("\n")][-1])
        with opened(server, federation) as new:
            began = time.monotonic()
            assert new.take_over() == 2 * times
            assert time.monotonic() - began < LIMIT_SECONDS
            last = int(new.cells()["number"])
            assert last in {number, number + 1}
            assert new.versions() == {n: str(n) for n in range(1, last + 1)}
            assert [entry.included_in for entry in new.ledger()] == list(range(1, last + 1))


def test_who_only_reads_is_left_alone_however_long_it_takes(server: PostgreSQL, federation: str) -> None:
    limits = Limits(idle_seconds=0)
    with opened(server, federation, limits=limits) as store, opened(server, federation) as other:
        store.commit(Commit(1, {"a": b"1"}))
        with opened(server, federation, read_only=True) as looking, psycopg.connect(server.url()) as connection:
            # Both are in a transaction: one that reads, and one that looks like an aggregator's.
            connection.execute("SELECT set_config('application_name', %s, false)", (f"fedmq_{federation}",))
            store._end_the_frozen()
            assert looking.cells() == {"a": b"1"}
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert other.cells() == {"a": b"1"}


def test_a_reader_has_a_name_that_no_aggregator_has(server: PostgreSQL) -> None:
    federation = "r" * 64
    with opened(server, federation), opened(server, federation, read_only=True):
        names = asked(server, "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE '%_rrr%'")
        assert sorted(names) == [(f"fedmq_{'r' * 57}",), (f"reader of fedmq_{'r' * 47}",)]


def test_of_two_that_are_alive_the_one_before_can_commit_nothing_more(server: PostgreSQL, federation: str) -> None:
    with opened(server, federation) as old, opened(server, federation) as new:
        old.commit(Commit(old.take_over(), {"a": b"old"}))
        new.take_over()
        with pytest.raises(FencedError):
            old.commit(Commit(1, {"a": b"old again"}))
        new.commit(Commit(2, {"a": b"new"}))
        assert old.cells() == {"a": b"new"}
