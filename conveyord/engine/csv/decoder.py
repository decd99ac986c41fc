"""CSV blocks to record batches: `BlockDecoder` for the format of RFC 4180 and its common dialects.

Cells are read as text by pyarrow in one call, then typed column by column. Only a block that fails is
looked at record by record, to find the bad ones; the rest of it goes the bulk way again.

Empty cells are null, quoted or not. A value that does not fit its column keeps its text in a sibling
(`speed__string` beside `speed`). A declared type is strict: a value that does not fit is a bad record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from conveyord.core.errors import BatchError, ConfigError, RecordError
from conveyord.core.units import counted
from conveyord.engine.csv.columns import DECLARED, infer_type, parse, resolve_declared
from conveyord.engine.csv.scan import BYTE_ORDER_MARK, Scanner
from conveyord.engine.decoding import BadRecord, Decoded
from conveyord.engine.naming import sibling_name, type_word

HEADER_BYTES_MAX = 1024 * 1024  # what a reader looks at; a longer first line is no header
SHOWN_CHARACTERS = 60  # of a bad value, in a message
_LONE_RETURN = re.compile(rb"\r(?!\n)")
_LINE_ENDS = re.compile(rb"(?:\r?\n)+\Z")


@dataclass(frozen=True, slots=True)
class CsvLayout:
    """The columns of one file in their order. Files of one source may differ; columns match by name."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why one record is bad."""

    code: str
    reason: str


class CsvDecoder:
    """See `BlockDecoder`. Without a header the columns are named f0, f1, ...

    types: column name to one of string, long, double, boolean, timestamp, date; others are inferred.
    Raises ConfigError for a dialect or type that cannot be.
    """

    def __init__(
        self,
        *,
        header: bool = True,
        delimiter: str = ",",
        quote: str | None = '"',
        types: Mapping[str, str] | None = None,
    ) -> None:
        for key, mark in (("delimiter", delimiter), ("quote", quote)):
            if mark is not None and (len(mark) != 1 or not mark.isascii() or mark in "\r\n\0"):
                raise ConfigError(f"{key}: must be one ASCII character and no line end, got {mark!r}")
        if delimiter == quote:
            raise ConfigError(f"delimiter and quote: must differ, both are {quote!r}")
        for name, word in (types or {}).items():
            if word not in DECLARED:
                raise ConfigError(f"types.{name}: must be one of {', '.join(DECLARED)}, got {word!r}")
        self.lines_are_records = quote is None
        self._header = header
        self._delimiter, self._quote = delimiter, quote
        self._declared = {name: DECLARED[word] for name, word in (types or {}).items()}
        self._scanner = Scanner(delimiter=delimiter.encode(), quote=quote.encode() if quote else None)

    def begin(self, head: bytes) -> tuple[int, CsvLayout]:
        """See `BlockDecoder.begin`. `head` must hold the whole first record, or the whole file.

        A file without any record has no columns. Names that are empty or stand twice are refused,
        because a value must have one column to go to.
        """
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise RecordError("header", "the file is UTF-16; convert it to UTF-8", code="INVALID_UTF8")
        skip = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
        body = head[skip:]
        blank = re.match(rb"(?:\r?\n)*", body)
        first = blank.end() if blank else 0
        record, end = self._first_record(body[first:])
        if not record:
            return skip + first, CsvLayout(())
        cells = [cell.value for cell in self._scanner.cells(record)]
        if not self._header:
            return skip, CsvLayout(tuple(f"f{index}" for index in range(len(cells))))
        return skip + first + end, CsvLayout(_header_names(cells))

    def _first_record(self, body: bytes) -> tuple[bytes, int]:
        """The first record without its line end, and where the next one starts."""
        newline = self._scanner.first_end(body)
        if newline >= 0:
            return body[:newline].removesuffix(b"\r"), newline + 1
        if self._scanner.quoting(body).open_at is not None:
            raise RecordError("header", "a quote is opened and never closed", code="UNCLOSED_QUOTE")
        if len(body) >= HEADER_BYTES_MAX - len(BYTE_ORDER_MARK):
            limit = f"no line ends within the first {HEADER_BYTES_MAX} bytes"
            raise RecordError("header", f"{limit}; this is no CSV file with lines", code="MALFORMED_RECORD")
        return body, len(body)

    def boundary(self, buffer: bytes | bytearray) -> int:
        """See `BlockDecoder.boundary`. Line ends within quoted cells are none."""
        return self._scanner.boundary(buffer)

    def starts(self, block: bytes) -> pa.Int64Array:
        """See `BlockDecoder.starts`."""
        return self._scanner.starts(block, self._scanner.quoting(block))

    def infer(self, sample: bytes, layout: CsvLayout) -> pa.Schema:
        """See `BlockDecoder.infer`."""
        if not layout.names:
            return pa.schema([])
        columns, _, _ = self._texts(sample, layout)
        return pa.schema([(name, self._type_of(name, columns[name])) for name in layout.names])

    def _type_of(self, name: str, texts: pa.StringArray) -> pa.DataType:
        declared = self._declared.get(name)
        return infer_type(texts) if declared is None else resolve_declared(declared, texts)

    def decode(self, block: bytes, schema: pa.Schema, layout: CsvLayout) -> Decoded:
        """See `BlockDecoder.decode`. A column that `schema` lacks or has as null is typed by this block."""
        texts, records, faults = self._texts(block, layout)
        for name in layout.names:
            known = schema.get_field_index(name)
            if known >= 0 and not pa.types.is_null(schema.field(known).type):
                continue
            field = pa.field(name, self._type_of(name, texts[name]))
            schema = schema.append(field) if known < 0 else schema.set(known, field)
        rows = [row for row in range(records) if row not in faults] if faults else None
        values: dict[str, pa.Array] = {}
        strays: dict[str, pa.BooleanArray] = {}
        for name in layout.names:
            parsed = parse(texts[name], schema.field(name).type, declared=name in self._declared)
            values[name] = parsed.values
            if parsed.misfits is None:
                continue
            if name in self._declared or sibling_name(name, pa.string()) in texts:
                found = pc.indices_nonzero(parsed.misfits).to_pylist()
                for row in found:
                    record = row if rows is None else rows[row]
                    reason = self._misfit(name, schema.field(name).type, texts[name][row].as_py())
                    faults.setdefault(record, _Fault("TYPE_MISMATCH", reason))
            else:
                strays[name] = parsed.misfits
        keep = None
        if len(faults) > records - _height(texts):
            kept = rows if rows is not None else range(records)
            keep = pa.array([record not in faults for record in kept], pa.bool_())
        for name, misfits in strays.items():
            schema = _with_sibling(values, schema, name, texts[name], misfits, keep)
        data = _assemble(values, schema, _height(texts), keep)
        return Decoded(data, schema, self._bad_records(block, faults))

    def _misfit(self, name: str, kind: pa.DataType, value: str) -> str:
        shown = value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "..."
        said = f"column {name!r} holds {shown!r}, which is no {type_word(kind)}"
        if name in self._declared:
            return f"{said} as declared in types; mend the value or declare string"
        taken = sibling_name(name, pa.string())
        return f"{said}, and {taken!r} that would take it is a column of the file; declare string for {name!r}"

    def _texts(self, block: bytes, layout: CsvLayout) -> tuple[dict[str, pa.StringArray], int, dict[int, _Fault]]:
        """The sound records' cells by column, how many records there are, and the faults by record."""
        quoting = self._scanner.quoting(block)
        lone_return = b"\r" in block and _LONE_RETURN.search(block)
        if not quoting.junk and quoting.open_at is None and b"\0" not in block and not lone_return:
            columns = self._read(block, layout)
            if columns is not None and self._scanner.holds(block, quoting, rows=_height(columns)):
                return columns, _height(columns), {}
        faults: dict[int, _Fault] = {}
        sound = []
        edges = [*self._scanner.starts(block, quoting).to_pylist(), len(block)]
        records = len(edges) - 1
        for number in range(records):
            first, end = edges[number], edges[number + 1]
            opened = quoting.open_at is not None and first <= quoting.open_at < end
            record = block[first:end] if opened else _LINE_ENDS.sub(b"", block[first:end])
            fault = self._fault(record, layout, opened=opened)
            if fault is None:
                sound.append(record)
            else:
                faults[number] = fault
        columns = self._read(b"\n".join(sound), layout)
        if columns is None or _height(columns) != len(sound):
            raise BatchError(
                f"CSV: a block of {counted(records, 'record')} cannot be read although each of them can; "
                "keep the file and report this with it"
            )
        return columns, records, faults

    def _fault(self, record: bytes, layout: CsvLayout, *, opened: bool) -> _Fault | None:
        if opened:
            reason = "a quote is opened and not closed before the file ends; everything behind it is taken in"
            return _Fault("UNCLOSED_QUOTE", reason)
        try:
            record.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"0x{record[error.start]:02x}"
            return _Fault("INVALID_UTF8", f"byte {byte} at offset {error.start} of the record is not UTF-8")
        if b"\0" in record:
            return _Fault("NUL_BYTE", f"a NUL byte stands at offset {record.index(0)} of the record")
        cells = self._scanner.cells(record)
        for number, cell in enumerate(cells, 1):
            if cell.quoted and cell.rest:
                return _Fault("MALFORMED_RECORD", f"text follows the closing quote of cell {number}")
            if b"\r" in cell.rest:
                return _Fault("MALFORMED_RECORD", f"a carriage return stands alone in cell {number}; quote it")
        if len(cells) != len(layout.names):
            found, wanted = counted(len(cells), "cell"), counted(len(layout.names), "column")
            return _Fault("RAGGED_ROW", f"has {found}, the file has {wanted}")
        return None

    def _bad_records(self, block: bytes, faults: dict[int, _Fault]) -> tuple[BadRecord, ...]:
        if not faults:
            return ()
        edges = [*self.starts(block).to_pylist(), len(block)]
        bad = []
        for before, number in enumerate(sorted(faults)):
            first, fault = edges[number], faults[number]
            length = len(_LINE_ENDS.sub(b"", block[first : edges[number + 1]]))
            bad.append(BadRecord(first, length, number - before, fault.code, fault.reason))
        return tuple(bad)

    def _read(self, block: bytes, layout: CsvLayout) -> dict[str, pa.StringArray] | None:
        """All cells as text in one call, blank lines left out; None if Arrow finds anything wrong with a record."""
        names = layout.names
        if not block or _LINE_ENDS.match(block):
            return {name: pa.array([], pa.string()) for name in names}
        try:
            table = csv.read_csv(
                pa.py_buffer(block),
                read_options=csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=list(names)),
                parse_options=csv.ParseOptions(
                    delimiter=self._delimiter,
                    quote_char=self._quote or False,
                    double_quote=True,
                    newlines_in_values=self._quote is not None,
                ),
                convert_options=csv.ConvertOptions(
                    column_types={name: pa.string() for name in names},
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                    check_utf8=not block.isascii(),  # a tenth of the time to read
                ),
            )
        except pa.ArrowInvalid:
            return None
        # What was read as one block makes one chunk; combining it would copy it.
        return {name: table.column(name).chunk(0) for name in names}


def _header_names(cells: list[bytes]) -> tuple[str, ...]:
    names: list[str] = []
    for number, cell in enumerate(cells, 1):
        try:
            name = cell.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecordError("header", f"the name of column {number} is not UTF-8", code="INVALID_UTF8") from error
        remedy = "mend the header, or set header: false to name columns f0, f1, ..."
        if not name.strip():
            raise RecordError("header", f"column {number} has no name; {remedy}", code="BAD_HEADER")
        if "\0" in name:
            raise RecordError("header", f"the name of column {number} holds a NUL; {remedy}", code="BAD_HEADER")
        if name in names:
            where = f"columns {names.index(name) + 1} and {number}"
            raise RecordError("header", f"{where} are both named {name!r}; {remedy}", code="BAD_HEADER")
        names.append(name)
    return tuple(names)


def _height(texts: dict[str, pa.StringArray]) -> int:
    return len(next(iter(texts.values()))) if texts else 0


def _with_sibling(
    values: dict[str, pa.Array],
    schema: pa.Schema,
    name: str,
    texts: pa.StringArray,
    misfits: pa.BooleanArray,
    keep: pa.BooleanArray | None,
) -> pa.Schema:
    """Put the texts that do not fit into the sibling of `name`, which `schema` gets if it lacks it."""
    if keep is not None and not pc.any(pc.and_(misfits, keep)).as_py():
        return schema
    sibling = sibling_name(name, pa.string())
    while (known := schema.get_field_index(sibling)) >= 0 and schema.field(known).type != pa.string():
        if pa.types.is_null(schema.field(known).type):
            schema = schema.set(known, pa.field(sibling, pa.string()))
        else:  # another format's column by that name: its sibling takes the text
            sibling = sibling_name(sibling, pa.string())
    values[sibling] = pc.if_else(misfits, texts, pa.scalar(None, pa.string()))
    return schema if known >= 0 else schema.append(pa.field(sibling, pa.string()))


def _assemble(
    values: dict[str, pa.Array], schema: pa.Schema, height: int, keep: pa.BooleanArray | None
) -> pa.RecordBatch:
    """All columns of `schema` in its order, null where the file has none, without dropped rows."""
    arrays = [values[field.name] if field.name in values else pa.nulls(height, field.type) for field in schema]
    data = pa.RecordBatch.from_arrays(arrays, schema=schema)
    return data if keep is None else data.filter(keep)
