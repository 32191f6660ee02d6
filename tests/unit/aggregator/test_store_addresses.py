"""How the store in PostgreSQL reads its URL, and what it says of errors: nothing of a password, ever."""

import pytest

psycopg = pytest.importorskip("psycopg")

from aggregator.errors import StoreError  # noqa: E402 - only where there is psycopg
from aggregator.store.postgresql import Limits, PostgreSQLStore, _words  # noqa: E402


def refusal(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """Return what is said of a store that nobody lets in; the driver says all that it was given."""

    def connect(**given: object) -> None:
        raise psycopg.OperationalError(f"no luck with {given}")

    monkeypatch.setattr(psycopg, "connect", connect)
    with pytest.raises(StoreError) as caught:
        PostgreSQLStore(url, "heart", limits=Limits(patience_seconds=0))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://tester:7731/postgres",
        "postgresql://tester:773199/postgres",
        "postgresql://tester:7731",
        "postgresql://tester:7731,db:5432/postgres",
        "postgresql://127.0.0.1:5432,tester:7731/postgres",
        "postgresql://tester:7731?sslmode=require",
        "postgresql://tester:7731/postgres@db/heart",
        "postgresql://tester%3A7731/postgres",
        "postgresql://:7731/postgres",
        "postgresql://fedmq:canary/fedmq",
        "postgresql://user:se/canary",
        "postgresql://user:se/canary@db/heart",
        "postgresql://max@corp:canary/heart",
        "postgresql://u:p@db:canary/heart",
        "postgresql://u:p@db:5432:canary/heart",
        "postgresql://u:p@db:5432,canary:canary/heart",
        "postgresql://u:p@/heart?port=canary",
        "postgresql://u:p@/heart?host=canary:canary",
    ],
)
def test_a_url_without_a_host_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    said = refusal(monkeypatch, url)
    assert said.startswith("store: there is no user@host in this URL; write it as postgresql://user@host/database")
    assert "canary" not in said
    assert "7731" not in said


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:can%ary@db/heart",
        "postgresql://user:canary%ff@db/heart",
        "postgresql://user:canary%2",
        "postgresql://user:can?ary",
        "postgresql://user:p@ss?canary=1@db/heart",
        "postgresql://user:canary%00@db/heart",
        "postgresql://[canary",
        "postgresql://user:can?ary/@db/heart",
        "postgresql://u@db/heart?pasword=canary",
    ],
)
def test_a_url_that_is_none_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    said = refusal(monkeypatch, url)
    assert said.startswith("store: this is no URL of a database; write it as postgresql://user@host/database")
    assert "ary" not in said


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://", "postgresql://localhost/"),
        ("postgresql:///heart", "postgresql://localhost/heart"),
        ("postgresql://db.example.org/heart", "postgresql://db.example.org/heart"),
        ("postgresql://localhost:5433/heart", "postgresql://localhost:5433/heart"),
        ("postgresql://127.0.0.1:5433,[::1]:5434/heart", "postgresql://127.0.0.1,::1:5433,5434/heart"),
        ("postgresql://user:canary@db:5433/heart", "postgresql://db:5433/heart"),
        ("postgresql://user:canary@one:1,two,three:3/heart", "postgresql://one,two,three:1,,3/heart"),
        ("postgresql://user:can%40%3A%2Fary@db/heart", "postgresql://db/heart"),
        ("postgresql://user:can:ary?@db/heart", "postgresql://db/heart"),
        ("postgresql://user@db/heart?password=canary", "postgresql://db/heart"),
        ("postgresql://db/heart?user=user&password=canary&options=-c%20a:b", "postgresql://db/heart"),
        ("postgresql://user@db/heart?passfile=/home/canary&sslpassword=canary", "postgresql://db/heart"),
        ("postgresql://user@/heart?host=/run/postgresql", "postgresql:///run/postgresql/heart"),
        ("postgresql://user:p@canary@db/heart", "in PostgreSQL"),
        ("postgresql://user:p@s/canary@db/heart", "in PostgreSQL"),
        ("postgresql://user:p@db/heart%20password=canary", "in PostgreSQL"),
        ("postgresql://user%253Acanary/heart", "in PostgreSQL"),
        ("postgresql://user:p@db/heart#canary", "in PostgreSQL"),
        ("postgresql:///postgresql%3A%2F%2Fu:canary%40db%2Fheart", "in PostgreSQL"),
    ],
)
def test_of_a_url_only_the_database_is_shown(monkeypatch: pytest.MonkeyPatch, url: str, place: str) -> None:
    said = refusal(monkeypatch, url)
    assert said.startswith(f"the store {place} cannot be opened: it ")
    assert "ary" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('FATAL:  too many connections for role "heart"', "it has no connection left"),
        ('FATAL:  too many connections for database "heart"', "it has no connection left"),
        ("FATAL:  sorry, too many clients already", "it has no connection left"),
        (
            'FATAL:  remaining connection slots are reserved for roles with privileges of the "pg_use_x" role',
            "it has no connection left",
        ),
        (
            'FATAL:  permission denied for database "heart"\nDETAIL:  User does not have CONNECT privilege.',
            "this user may not connect to this database; GRANT CONNECT",
        ),
        (
            'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "role", database "heart", no encryption',
            "its pg_hba.conf does not let this user into this database",
        ),
        ('FATAL:  password authentication failed for user "heart"', "it refuses the user or the password"),
        ('FATAL:  role "heart" does not exist', "it refuses the user or the password"),
        ('FATAL:  database "too many clients" does not exist', "there is no such database"),
        ('connection to server at "password.example.org", port 1 failed: Connection refused', "it cannot be reached"),
        ("too many open files", "it is out of space or memory"),
    ],
)
def test_what_a_server_says_that_lets_nobody_in_has_its_own_sentence(text: str, words: str) -> None:
    assert _words(psycopg.OperationalError(f'connection to server at "h" failed: {text}')).startswith(words)
