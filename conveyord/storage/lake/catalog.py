"""Opens Iceberg catalogs: the embedded one below the data directory, or any that pyiceberg knows."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from conveyord.core.errors import ConfigError, Corrupt, Refused, StorageFull
from conveyord.storage.lake.outcomes import FULL_MESSAGES

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.catalog.sql import SqlCatalog

EMBEDDED = "lake"
FILE_IO = "conveyord.storage.lake.fileio.DurableFileIO"
FSSPEC_FILE_IO = "pyiceberg.io.fsspec.FsspecFileIO"
ENCRYPTION_KEYS = frozenset({"s3.server-side-encryption", "s3.sse-kms-key-id"})
CATALOG_FILE = "catalog.db"
WAREHOUSE_DIRECTORY = "warehouse"
DATA_DIR_KEY = "conveyord.data-dir"  # property of an opened embedded catalog; stored nowhere
DAMAGE_MESSAGES = ("file is not a database", "database disk image is malformed")  # SQLite's
LOCK_WAIT_SECONDS = 30  # a writer of the embedded catalog holds its lock for milliseconds


def open_embedded(data_dir: Path) -> Catalog:
    """Blocking. Open the embedded catalog below `data_dir` for writing, creating both if missing.

    What is created is on disk when this returns. Raises StorageFull if the disk is full or read-only,
    Corrupt if the catalog's file is damaged.
    """
    from pyiceberg.catalog.sql import SqlCatalog

    from conveyord.storage.disk import make_directories, sync_directory
    from conveyord.storage.lake.fileio import storage_full

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
    file = data_dir / CATALOG_FILE
    _refuse_emptied(file, warehouse)
    uri = f"sqlite:///{file}?timeout={LOCK_WAIT_SECONDS}"
    with _file_errors(file):
        catalog = SqlCatalog(EMBEDDED, uri=uri, **_embedded_properties(data_dir))
        _durable(catalog)
    return _names_damage(catalog, file)


def open_embedded_read_only(data_dir: Path) -> Catalog:
    """Blocking. Open the embedded catalog below `data_dir` for reading beside its owner. Creates nothing.

    The file is opened read-write but without creating it, and every statement but queries is refused:
    SQLite must be able to roll back what a killed writer left, or the catalog could not be read at all.
    Raises ConfigError if there is no catalog, Corrupt if its file is damaged; so does whatever is asked of it.
    """
    from pyiceberg.catalog.sql import SqlCatalog

    data_dir = _absolute(data_dir)
    file = data_dir / CATALOG_FILE
    if not file.is_file():
        raise ConfigError(
            f"data directory {data_dir}: no {CATALOG_FILE} in it; run a pipeline first, or give the directory"
            " of one with --data-dir"
        )
    _refuse_emptied(file, data_dir / WAREHOUSE_DIRECTORY)
    uri = f"sqlite:///file:{file}?mode=rw&uri=true&timeout={LOCK_WAIT_SECONDS}"
    with _file_errors(file):
        catalog = SqlCatalog(EMBEDDED, uri=uri, init_catalog_tables="false", **_embedded_properties(data_dir))
    _on_connect(catalog, "PRAGMA query_only = 1")
    return _names_damage(catalog, file)


def displaced(catalog: Catalog, identifier: str | tuple[str, ...]) -> Refused | None:
    """Blocking. Why a table of an embedded catalog must not be written: its data directory is not in its place.

    Iceberg names every file by its absolute place. In a directory that was moved none of them is found; in
    one that was copied the catalog names the original's files, which the copy's maintenance would delete.
    None if all is well, if there is no such table, and for every catalog but the embedded ones.
    """
    from sqlalchemy import text

    data_dir = catalog.properties.get(DATA_DIR_KEY)
    if data_dir is None:
        return None
    *namespace, name = identifier.split(".") if isinstance(identifier, str) else identifier
    query = text("SELECT metadata_location FROM iceberg_tables WHERE table_namespace = :ns AND table_name = :name")
    with cast("SqlCatalog", catalog).engine.connect() as connection:
        location = connection.execute(query, {"ns": ".".join(namespace), "name": name}).scalar()
    if location is None or not str(location).startswith("file://"):
        return None
    path = Path(str(location).removeprefix("file://"))
    here = Path(data_dir, WAREHOUSE_DIRECTORY)
    # Links are followed on both sides, so that a link at the former place is enough of a remedy.
    if path.resolve().is_relative_to(here.resolve()):
        return None
    before, found, below = str(path).rpartition(f"/{WAREHOUSE_DIRECTORY}/{'/'.join((*namespace, name))}/")
    if not found or not (here / "/".join((*namespace, name)) / below).exists():
        return None  # not a place that this catalog once gave it: someone put the table there on purpose
    if path.exists():
        return Refused(
            f"data directory {data_dir}: it is a copy of {before}, and its catalog names the files of that one; "
            "run in the original, or move that away and leave a link to the copy in its place"
        )
    return Refused(
        f"data directory {data_dir}: it was moved here from {before}, and Iceberg names files by their absolute "
        f"place; move it back, or leave a link there: ln -s {shlex.quote(data_dir)} {shlex.quote(before)}"
    )


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
        return _durable(load_catalog(name, **{**_io_defaults(name, properties), **properties}))
    except (NoSuchPropertyException, NotInstalledError, ValueError) as error:
        raise ConfigError(f"catalog {name}: {error}; see pyiceberg's documentation of catalog properties") from error


def digest_of(properties: Mapping[str, str]) -> str:
    """What tells two configured catalogs apart: where they are, whatever credentials and limits they are given."""
    where = urlsplit(properties.get("uri", ""))
    uri = where._replace(netloc=where.netloc.rpartition("@")[2], query="").geturl()
    text = json.dumps([properties.get("type"), uri, properties.get("warehouse")])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _io_defaults(name: str, properties: Mapping[str, str]) -> dict[str, str]:
    """What `properties` leave open about files, so that every reader and writer takes them the same way.

    Raises ConfigError if they ask for encryption and the package that can pass that on is missing.
    """
    defaults = {"py-io-impl": FILE_IO}
    if "s3.endpoint" in properties and str(properties.get("s3.force-virtual-addressing")).lower() != "true":
        # pyarrow puts the bucket into the path of an endpoint that is not Amazon's; DataFusion has to be told to.
        defaults["s3.path-style-access"] = "true"
    if asked := sorted(ENCRYPTION_KEYS & properties.keys()):
        if find_spec("s3fs") is None:
            raise ConfigError(
                f"catalog {name}: {', '.join(asked)} takes the package s3fs, because pyarrow cannot pass it on;"
                " pip install 'conveyord[s3]'"
            )
        defaults["py-io-impl"] = FSSPEC_FILE_IO
    if host := properties.get("gcs.service.host"):
        defaults["gcs.service.path"] = host  # what DataFusion calls it
    if "gcs.oauth2.token" in properties and "gcs.oauth2.token-expires-at" not in properties:
        raise ConfigError(
            f"catalog {name}: gcs.oauth2.token takes gcs.oauth2.token-expires-at with it, in milliseconds since 1970;"
            " leave both out to use the machine's own Google credentials"
        )
    return defaults


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


@contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Say what opening the embedded catalog's `file` came to."""
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except DatabaseError as error:
        if any(message in str(error) for message in FULL_MESSAGES):
            full = f"{file}: {error.orig}; free space or make it writable, then run again"
            raise StorageFull(full) from error
        if _is_damage(error.orig):
            raise _damaged(file, error.orig) from error
        raise


def _names_damage(catalog: SqlCatalog, file: Path) -> SqlCatalog:
    """`catalog`, which raises Corrupt with the name of its `file` where SQLite finds that damaged.

    Only of a query: a write that fails this way may have happened, and the look that follows it finds out.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import ExceptionContext

    def name_damage(context: ExceptionContext) -> None:
        if _is_damage(context.original_exception) and (context.statement or "").lstrip().startswith("SELECT"):
            raise _damaged(file, context.original_exception) from context.original_exception

    event.listen(catalog.engine, "handle_error", name_damage)
    return catalog


def _is_damage(error: BaseException | None) -> bool:
    return error is not None and any(message in str(error) for message in DAMAGE_MESSAGES)


def _refuse_emptied(file: Path, warehouse: Path) -> None:
    """Raise Corrupt if the catalog is an empty file beside tables: SQLite would take it for a new one.

    Beside an empty warehouse it is what a process leaves that was killed while it made the catalog.
    """
    if file.is_file() and file.stat().st_size == 0 and warehouse.is_dir() and any(warehouse.iterdir()):
        raise _damaged(file, "the file is empty")


def _damaged(file: Path, reason: object) -> Corrupt:
    return Corrupt(
        f"{file}: the catalog is damaged ({reason}); restore the file from a backup. Without one, move it away and "
        f"register the newest metadata file of each table below {file.with_name(WAREHOUSE_DIRECTORY)} in a new "
        "catalog (pyiceberg's register_table): the tables themselves are not in this file"
    )


def _embedded_properties(data_dir: Path) -> dict[str, str]:
    # Not `as_uri`, which quotes: pyiceberg takes the path of a URI as it stands, and would look elsewhere.
    warehouse = f"file://{data_dir / WAREHOUSE_DIRECTORY}"
    return {"warehouse": warehouse, "py-io-impl": FILE_IO, DATA_DIR_KEY: str(data_dir)}


def _absolute(data_dir: Path) -> Path:
    absolute = data_dir.absolute()
    if found := set(str(absolute)) & set("#?%"):
        raise ConfigError(
            f"data directory {absolute}: {' and '.join(sorted(found))} cannot stand in the path of an Iceberg"
            " warehouse, because readers take it for part of a URI; choose another --data-dir"
        )
    return absolute
