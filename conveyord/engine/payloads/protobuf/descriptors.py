"""From the text of .proto files to descriptors that Protobuf's runtime can read messages with.

A registry hands out text, and Protobuf's Python package has no compiler: grpcio-tools has one, which runs as a process
of its own, so that what it prints and whatever happens to it stays there. Some clients register a serialised descriptor
in place of the text; that needs no compiler.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from conveyord.core.errors import ConfigError

COMPILE_SECONDS_MAX = 30.0  # it takes a tenth of one
MAIN = "conveyord_message.proto"
_OURS = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*\.proto")
_BUILT_IN = re.compile(r"google/(protobuf|type)/[a-z0-9_]+\.proto")
_META = "confluent/meta.proto"
_CONFLUENT = {
    _META: """syntax = "proto3";
package confluent;
import "google/protobuf/descriptor.proto";
message Meta { string doc = 1; map<string, string> params = 2; repeated string tags = 3; }
extend google.protobuf.FileOptions { Meta file_meta = 1088; }
extend google.protobuf.MessageOptions { Meta message_meta = 1088; }
extend google.protobuf.FieldOptions { Meta field_meta = 1088; }
extend google.protobuf.EnumOptions { Meta enum_meta = 1088; }
extend google.protobuf.EnumValueOptions { Meta enum_value_meta = 1088; }
""",
    "confluent/type/decimal.proto": """syntax = "proto3";
package confluent.type;
message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }
""",
}
"""Files that Confluent's registry knows without their being registered."""


class UnusableSchema(Exception):
    """A schema whose messages cannot become rows. Its text is a sentence that says why."""


def check_installed() -> None:
    """Raise ConfigError if the packages that this format needs are not there."""
    if importlib.util.find_spec("google") is None or importlib.util.find_spec("google.protobuf") is None:
        raise ConfigError(
            "the format protobuf needs a package that is not installed: pip install 'conveyord[kafka-protobuf]'"
        )


class Descriptors:
    """All files of one schema. Raises UnusableSchema for what is none. Blocking: may run the compiler."""

    def __init__(self, text: str, references: Iterable[tuple[str, str]]) -> None:
        """references: import path and text of each file that is imported, each before those that import it."""
        from google.protobuf.descriptor_pool import DescriptorPool

        named = {**dict(references), MAIN: text}
        files = {name: _serialised(name, content) for name, content in named.items()}
        if all(file is None for file in files.values()):
            found = _compiled(named)
        elif any(file is None for file in files.values()):
            raise UnusableSchema("some of its files are text and others serialised descriptors")
        else:
            found = _with_built_in({name: file for name, file in files.items() if file is not None})
        self._pool = DescriptorPool()
        try:
            for file in found.values():
                self._pool.AddSerializedFile(file.SerializeToString())
            self._pool.FindFileByName(MAIN)
        except (TypeError, KeyError) as error:
            raise UnusableSchema(f"its files do not fit together ({error})") from error
        self._main = found[MAIN]

    def message(self, indexes: tuple[int, ...]) -> Any:
        """The descriptor of a message, by its number in the file and the numbers of those nested within.

        Raises UnusableSchema if there is none.
        """
        name, inner = self._main.package, self._main.message_type
        for index in indexes:
            if not 0 <= index < len(inner):
                raise UnusableSchema(f"it has no message number {'.'.join(map(str, indexes))}")
            name, inner = f"{name}.{inner[index].name}".lstrip("."), inner[index].nested_type
        return self._pool.FindMessageTypeByName(name)


def _serialised(name: str, text: str) -> Any:
    """The descriptor that a text is in base64; None if it is none."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.message import DecodeError

    try:
        file = FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, DecodeError):
        return None
    file.name = name
    return file


def _with_built_in(files: Mapping[str, Any]) -> dict[str, Any]:
    """`files` and those that they import and everybody has, each before those that import it."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    made: dict[str, Any] = {}

    def add(name: str, file: Any) -> None:
        if _META in file.dependency:  # options that nobody asks for
            file.dependency.remove(_META)
            del file.public_dependency[:], file.weak_dependency[:]
        for other in file.dependency:
            if other not in made and other not in files:
                add(other, FileDescriptorProto.FromString(_built_in(other)))
        made[name] = file

    for name, file in files.items():
        add(name, file)
    return made


def _built_in(name: str) -> bytes:
    if _BUILT_IN.fullmatch(name):
        try:
            module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        except ImportError:
            pass
        else:
            return bytes(module.DESCRIPTOR.serialized_pb)
    raise UnusableSchema(f"it imports {name!r}, which is not among its references")


def _compiled(named: Mapping[str, str]) -> dict[str, Any]:
    """The descriptors of files by their import paths, those that they import included."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    if importlib.util.find_spec("grpc_tools") is None:
        raise ConfigError(
            "the registry holds Protobuf schemas as text, and there is no compiler for it: "
            "pip install 'conveyord[kafka-protobuf]'"
        )
    with TemporaryDirectory(prefix="conveyord-proto-") as folder:
        for name, text in {**_CONFLUENT, **named}.items():
            if not _OURS.fullmatch(name) or ".." in PurePosixPath(name).parts:
                raise UnusableSchema(f"it imports {name!r}, which is no path of a .proto file")
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        made = Path(folder, "made.descriptors")
        _run_compiler(folder, made)
        found = FileDescriptorSet.FromString(made.read_bytes())
    return {file.name: file for file in found.file}


def _run_compiler(folder: str, made: Path) -> None:
    includes = [folder, *(str(path) for path in _includes())]
    arguments = [f"--proto_path={path}" for path in includes]
    arguments += ["--include_imports", f"--descriptor_set_out={made}", MAIN]
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnusableSchema(f"compiling it takes more than {COMPILE_SECONDS_MAX:g} s") from error
    if ended.returncode:
        lines = ended.stderr.decode("utf-8", "replace").splitlines()
        said = next((line for line in lines if ".proto:" in line and "warning" not in line), "the compiler failed")
        raise UnusableSchema(f"it is no .proto file ({said.replace(f'{folder}/', '')[:200]})")


def _includes() -> Iterable[Path]:
    """Where the files lie that everybody has: google/protobuf, and google/type if that is installed."""
    for package, depth in (("grpc_tools", 0), ("google.type", 2)):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield Path(place, "_proto") if depth == 0 else Path(place).parents[depth - 1]
