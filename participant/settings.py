"""The participant's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from broker.settings import Classes, ParticipantName, ServiceSettings, read_secret
from participant.schema_file import SchemaFile, read_schema
from participant.sources import Columns, Dialect, Reading

#: What is said of columns where there is no schema, and what each is then.
_WITHOUT_SCHEMA = ("label", "split", "sample_weight", "offset", "classes", "missing")


class TableSettings(BaseModel):
    """How tables are written, and what is what in them."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    feature_schema: Path | None = Field(
        None, description="The file (TOML) that says what the columns are, the same at all sites."
    )
    label: str = Field("y", description="Without a schema: the column to be predicted, 0 or 1, or a class.")
    split: str | None = Field(
        None, description="Without a schema: the column that says train or test; without one all rows train."
    )
    sample_weight: str | None = Field(None, description="Without a schema: the column of how much each row counts.")
    offset: str | None = Field(None, description="Without a schema: the column that is added to each row's margin.")
    classes: Classes = Field((0, 1), description="Without a schema: all labels there are, separated by commas.")
    missing: Literal["refuse", "mean"] = Field(
        "refuse", description="Without a schema: missing cells are refused, or filled with the federation's means."
    )
    delimiter: str = Field(",", description="What is between the cells of a .csv file; tab for tabulators.")
    decimal: Literal[".", ","] = Field(".", description="What stands before the decimals of numbers in a .csv file.")
    min_cell: int = Field(
        5, ge=1, description="Training rows that have a level before the others are told that it exists."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in _WITHOUT_SCHEMA if name in self.model_fields_set and name != "missing"]
        if self.feature_schema is not None and given:
            raise ValueError(f"{given[0]}: the schema says so; leave the setting out")
        if len("\t" if self.delimiter == "tab" else self.delimiter) != 1:
            raise ValueError("delimiter: one character, or tab")
        return self

    def schema_file(self) -> SchemaFile | None:
        """Return what the schema's file says, None where there is none; raises `DataError`."""
        return None if self.feature_schema is None else read_schema(self.feature_schema)

    def reading(
        self, data: str = "", *, query: str = "", url: str = "", watermark: str = "", scheduler: str = ""
    ) -> Reading:
        """Return how to read ``data``, or what a ``query`` gives; raises `DataError`."""
        said = self.schema_file()
        delimiter = "\t" if self.delimiter == "tab" else self.delimiter
        return Reading(
            what=self._columns() if said is None else said.schema,
            data=data,
            dialect=Dialect(delimiter, self.decimal, () if said is None else said.header),
            query=query,
            url=url,
            watermark=watermark,
            scheduler=scheduler,
        )

    def _columns(self) -> Columns:
        return Columns(
            label=self.label,
            split=self.split,
            sample_weight=self.sample_weight,
            offset=self.offset,
            classes=self.classes,
            missing=self.missing,
        )


class ParticipantSettings(TableSettings, ServiceSettings):
    """Where the rows are, and who we are."""

    name: ParticipantName = Field(
        description="Our name in the federation; also our broker user, unless users are shared."
    )
    data: str = Field(
        "", description="The file with our rows: .csv, .npz, or .parquet; of .parquet also a folder or a pattern."
    )
    query: str = Field("", description="SQL that gives our rows: over the files, called data, or of the database.")
    database: SecretStr = Field(
        SecretStr(""), description="SQLAlchemy URL of the database that the query is put to, in place of data."
    )
    database_file: Path | None = Field(None, description="File that holds this URL, in place of it.")
    watermark: str = Field("", description="SQL whose answer changes when the rows in the database do.")
    scheduler: str = Field(
        "", description="Address of a Dask scheduler that goes over our rows, in place of this process."
    )
    watch_seconds: float = Field(
        60.0, ge=0, description="Seconds between two looks whether our rows have changed; 0 for never."
    )
    threads: int = Field(1, ge=1, le=256, description="How many threads go over our rows at a time.")
    aggregator_user: str = Field("aggregator", description="The broker user that models must come from.")
    least_fit_seconds: float = Field(0.0, ge=0, description="Trials: make a local fit take at least so long.")
    slowdown: float = Field(1.0, ge=1, description="Trials: make a local fit take so many times longer.")
    out: Path | None = Field(
        None, description="Folder for each released model and ours; one of our name in state_dir by default."
    )
    site_intercepts: bool = Field(False, description="After a release, refit its intercept on our training rows too.")
    local_model: bool = Field(
        False, description="After a release, fine-tune it on our training rows and compare the two on our test rows."
    )
    exit_when_released: bool = Field(False, description="End when the model is released.")

    @model_validator(mode="after")
    def _rows_come_from_somewhere(self) -> Self:
        in_database = bool(self.database.get_secret_value()) or self.database_file is not None
        if bool(self.data) == in_database:
            raise ValueError("data: give data, or database and query")
        if in_database and not self.query:
            raise ValueError("query: give the query that the database answers with our rows")
        if self.watermark and not in_database:
            raise ValueError("watermark: it is put to a database; files tell by themselves when they change")
        if self.scheduler and (in_database or self.query):
            raise ValueError("scheduler: a Dask cluster reads the .parquet files that data names, without a query")
        return self

    def rows(self) -> Reading:
        """Return how to read our rows; raises `DataError` and `SettingsError`."""
        url = self.database.get_secret_value()
        if self.database_file is not None:
            url = read_secret(self.database_file, "the database's URL")
        return self.reading(self.data, query=self.query, url=url, watermark=self.watermark, scheduler=self.scheduler)
