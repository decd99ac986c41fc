"""The child of `tests.kafka.mock`: librdkafka's mock cluster, told what to do line by line.

Prints the cluster's address, then for each line `["name", argument, ...]` of JSON the error code that the function
`rd_kafka_mock_NAME` returned, 0 if it was done. Ends when its input does.

confluent-kafka offers none of these functions, but the librdkafka in its wheel exports them. Upstream calls them
experimental: contract tests are in test_mock.py, and requirements-dev.lock pins the wheel.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int16, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import confluent_kafka

BROKERS = 1
PRODUCER = 0  # rd_kafka_type_t

# What follows the cluster among the arguments. All but the last return an error code.
FUNCTIONS: dict[str, Sequence[type[ctypes._SimpleCData]]] = {
    "topic_create": (c_char_p, c_int, c_int),
    "topic_delete": (c_char_p,),
    "partition_delete_records": (c_char_p, c_int32, c_int64),
    "broker_set_down": (c_int32,),
    "broker_set_up": (c_int32,),
    "broker_set_rtt": (c_int32, c_int),
}


class Cluster:
    """The mock cluster and the client of librdkafka that owns it."""

    def __init__(self) -> None:
        libraries = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
        (path,) = libraries.glob("librdkafka-*.so*")
        self._library = library = ctypes.CDLL(str(path))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = c_void_p
        library.rd_kafka_mock_cluster_bootstraps.restype = c_char_p
        library.rd_kafka_mock_cluster_new.argtypes = (c_void_p, c_int)
        message = ctypes.create_string_buffer(512)
        owner = library.rd_kafka_new(PRODUCER, c_void_p(library.rd_kafka_conf_new()), message, c_size_t(len(message)))
        assert owner, message.value
        self._cluster = c_void_p(library.rd_kafka_mock_cluster_new(c_void_p(owner), BROKERS))
        assert self._cluster, "librdkafka made no mock cluster"
        # Three seconds by default, for each test that has a consumer group.
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, c_int32(0))
        self.bootstrap = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def call(self, name: str, *given: str | int) -> int:
        """Call one of FUNCTIONS, or push_request_errors(api_key, *error_codes)."""
        if name == "push_request_errors":
            api_key, *codes = (int(value) for value in given)
            errors = (c_int * len(codes))(*codes)
            self._library.rd_kafka_mock_push_request_errors_array(
                self._cluster, c_int16(api_key), c_size_t(len(codes)), errors
            )
            return 0
        values = (value.encode() if isinstance(value, str) else value for value in given)
        arguments = [kind(value) for kind, value in zip(FUNCTIONS[name], values, strict=True)]
        return int(getattr(self._library, f"rd_kafka_mock_{name}")(self._cluster, *arguments))


def main() -> None:
    cluster = Cluster()
    print(cluster.bootstrap, flush=True)
    for line in sys.stdin:
        print(cluster.call(*json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
