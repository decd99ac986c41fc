"""Opens Iceberg catalogs: the embedded one below the data directory, or any that pyiceberg knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from conveyord.core.errors import ConfigError, StorageFull
from conveyord.storage.lake.outcomes import FULL_MESSAGES

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.catalog.sql import SqlCatalog

EMBEDDED = "lake"
FILE_IO = "conveyord.storage.lake.fileio.DurableFileIO"
CATALOG_FILE = "catalog.db"
WAREHOUSE_DIRECTORY = "warehouse"
LOCK_WAIT_SECONDS = 30  # a writer of the embedded catalog holds its lock for milliseconds


def open_embedded(data_dir: Path) -> Catalog:
    """Blocking. Open the embedded catalog below `data_dir` for writing, creating both if missing.

    What is created is on disk when this returns. Raises StorageFull if the disk is full or read-only.
    """
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.exc import OperationalError

    from conveyord.storage.lake.fileio import make_directories, storage_full, sync_directory

    data_dir = _absolute(data_dir)
    warehouse = data_dir / WAREHOUSE_DIRECTORY
    try:
        existing = make_directories(warehouse)
        for directory in warehouse.parents:
            sync_directory(directory)
            if directory == existing or not directory.is_relative_to(existing):
                break
    except OSError as error:
        raise storage_full(error, warehouse) or error from error
    uri = f"sqlite:///{data_dir / CATALOG_FILE}?timeout={LOCK_WAIT_SECONDS}"
    try:
        return _durable(SqlCatalog(EMBEDDED, uri=uri, **_embedded_properties(warehouse)))
    except OperationalError as error:
        if any(message in str(error) for message in FULL_MESSAGES):
            full = f"{data_dir / CATALOG_FILE}: {error.orig}; free space or make it writable, then run again"
            raise StorageFull(full) from error
        raise


def open_embedded_read_only(data_dir: Path) -> Catalog:
    """Blocking. Open the embedded catalog below `data_dir` for reading beside its owner. Creates nothing.

    The file is opened read-write but without creating it, and every statement but queries is refused:
    SQLite must be able to roll back what a killed writer left, or the catalog could not be read at all.
    Raises ConfigError if there is no catalog.
    """
    from pyiceberg.catalog.sql import SqlCatalog

    data_dir = _absolute(data_dir)
    file = data_dir / CATALOG_FILE
    if not file.is_file():
        raise ConfigError(
            f"data directory {data_dir}: no {CATALOG_FILE} in it; run a pipeline first, or give the directory"
            " of one with --data-dir"
        )
    uri = f"sqlite:///file:{file}?mode=rw&uri=true&timeout={LOCK_WAIT_SECONDS}"
    properties = _embedded_properties(data_dir / WAREHOUSE_DIRECTORY)
    catalog = SqlCatalog(EMBEDDED, uri=uri, init_catalog_tables="false", **properties)
    _on_connect(catalog, "PRAGMA query_only = 1")
    return catalog


def open_named(catalog: str | Mapping[str, str], data_dir: Path, catalogs: Mapping[str, Mapping[str, str]]) -> Catalog:
    """Blocking. Open a catalog for writing: one of `catalogs` by name, the embedded one, or one by its properties.

    Raises ConfigError for a name that is not configured, and as the functions that do the opening.
    """
    if not isinstance(catalog, str):
        return open_catalog("inline", catalog)
    if catalog in catalogs:
        return open_catalog(catalog, catalogs[catalog])
    if catalog == EMBEDDED:
        return open_embedded(data_dir)
    known = ", ".join(sorted({EMBEDDED, *catalogs}))
    raise ConfigError(f"catalog {catalog!r} is not configured; conveyord.toml has {known}")


def open_catalog(name: str, properties: Mapping[str, str]) -> Catalog:
    """Blocking. Open a configured catalog. `properties` are pyiceberg's, as it documents them.

    Local files are written durably unless the properties name a FileIO of their own.
    Raises ConfigError if pyiceberg does not understand the properties.
    """
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import NoSuchPropertyException, NotInstalledError

    try:
        return _durable(load_catalog(name, **{"py-io-impl": FILE_IO, **properties}))
    except (NoSuchPropertyException, NotInstalledError, ValueError) as error:
        raise ConfigError(f"catalog {name}: {error}; see pyiceberg's documentation of catalog properties") from error


def _durable(catalog: Catalog) -> Catalog:
    """`catalog`, whose commits survive a power cut if it is kept in SQLite.

    SQLite commits by deleting its journal, and by default does not sync the directory after it: the
    journal can come back with the power and undo a commit that was acknowledged, while the files that
    the undone state names have been deleted meanwhile.
    """
    from pyiceberg.catalog.sql import SqlCatalog

    if isinstance(catalog, SqlCatalog) and catalog.engine.dialect.name == "sqlite":
        _on_connect(catalog, "PRAGMA synchronous = EXTRA")
    return catalog


def _on_connect(catalog: SqlCatalog, pragma: str) -> None:
    from sqlalchemy import event

    event.listen(catalog.engine, "connect", lambda connection, _: connection.execute(pragma))
    catalog.engine.dispose()  # pyiceberg has looked for its tables with a connection from before the listener


def _embedded_properties(warehouse: Path) -> dict[str, str]:
    # Not `as_uri`, which quotes: pyiceberg takes the path of a URI as it stands, and would look elsewhere.
    return {"warehouse": f"file://{warehouse}", "py-io-impl": FILE_IO}


def _absolute(data_dir: Path) -> Path:
    absolute = data_dir.absolute()
    if found := set(str(absolute)) & set("#?%"):
        raise ConfigError(
            f"data directory {absolute}: {' and '.join(sorted(found))} cannot stand in the path of an Iceberg"
            " warehouse, because readers take it for part of a URI; choose another --data-dir"
        )
    return absolute
