"""Kafka JSON to Parquet files with quixstreams: its own file sink, its own checkpoints every five seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from quixstreams import Application
from quixstreams.sinks.community.file.local import LocalFileSink

brokers, topic, records, target = sys.argv[1:]
Path(target).mkdir(parents=True, exist_ok=True)
os.chdir(target)  # the sink takes no directory with a slash in its name
application = Application(
    broker_address=brokers, consumer_group="quix", auto_offset_reset="earliest", commit_interval=5.0, loglevel="ERROR"
)
stream = application.dataframe(application.topic(topic, value_deserializer="json"))
stream.sink(LocalFileSink(directory="rows", format="parquet"))
application.run(count=int(records), collect=False)
