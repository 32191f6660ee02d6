"""Which store the settings mean: a file in the state folder, or a PostgreSQL database."""

from __future__ import annotations

from aggregator.errors import StoreError
from aggregator.settings import AggregatorSettings
from aggregator.store import Store
from aggregator.store.sqlite import SQLiteStore
from broker.settings import read_secret

#: In the state folder.
FILE = "aggregator.sqlite"


def open_store(settings: AggregatorSettings, *, read_only: bool = False) -> Store:
    """Return the store that ``settings`` mean; with ``read_only`` nothing is made or changed.

    Raises
    ------
    StoreError
        It cannot be opened, or is not this federation's.
    SettingsError
        There is no reading the file with its password.
    """
    url = settings.store.get_secret_value()
    if url:
        return _postgresql(url, settings, read_only=read_only)
    folder = settings.state_dir
    if not read_only:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder {folder} cannot be made: {error.strerror}") from None
    elif not (folder / FILE).exists():
        raise StoreError(f"there is no store {folder / FILE}: check state_dir, or the setting store")
    return SQLiteStore(folder / FILE, settings.federation, keep_ledger=settings.keep_ledger, read_only=read_only)


def _postgresql(url: str, settings: AggregatorSettings, *, read_only: bool) -> Store:
    if not url.startswith(("postgresql://", "postgres://")):
        raise StoreError("store: write it as postgresql://user@host/database, or leave it out for a file in state_dir")
    try:
        from aggregator.store.postgresql import PostgreSQLStore  # noqa: PLC0415 - only who has a database needs psycopg
    except ImportError:
        raise StoreError("store: PostgreSQL needs psycopg: pip install 'fedmq[postgres]'") from None
    file = settings.store_password_file
    password = None if file is None else read_secret(file, "the password of the store")
    return PostgreSQLStore(
        url, settings.federation, password=password, keep_ledger=settings.keep_ledger, read_only=read_only
    )
