"""A .proto file, compiled once for the tests, and what its messages are."""

from __future__ import annotations

from functools import cache
from typing import Any

from conveyord.engine.payloads.protobuf.descriptors import MAIN, Descriptors

OTHER = 'syntax = "proto3"; package demo.o; message Other { sint64 x = 1; }'
FLIGHT = """syntax = "proto3";
package demo.v1;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/empty.proto";
import "google/type/date.proto";
import "confluent/meta.proto";
import "other.proto";
message Flight {
  int64 id = 1;
  string carrier = 2;
  optional double delay = 3;
  google.protobuf.Timestamp at = 4;
  repeated string tags = 5;
  map<string, int32> counts = 6;
  oneof which { string a = 7; int32 b = 8; }
  enum Kind { UNKNOWN = 0; PASSENGER = 1; }
  Kind kind = 9;
  google.protobuf.StringValue note = 10;
  google.protobuf.Struct more = 11;
  message Leg { string from = 1; uint64 miles = 2; }
  repeated Leg legs = 12;
  demo.o.Other other = 13;
  bytes raw = 14;
  uint32 seats = 15;
  google.protobuf.Empty done = 16;
  float load = 17;
  google.type.Date day = 18;
}
message Second { message Inner { string s = 1; } string s = 1 [(confluent.field_meta) = { doc: "x" }]; }
"""
REFERENCES = (("other.proto", OTHER),)


@cache
def message_class(*indexes: int) -> Any:
    """The class of a message of `FLIGHT`, by its place in the file."""
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(_descriptors().message(indexes))


@cache
def _descriptors() -> Descriptors:
    return Descriptors(FLIGHT, REFERENCES)


def file_descriptor() -> Any:
    """The descriptor of `FLIGHT` itself."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    made = FileDescriptorProto()
    message_class(0).DESCRIPTOR.file.CopyToProto(made)
    assert made.name == MAIN
    return made
