"""A real Apache Kafka for tests: one process (KRaft, broker and controller) that serves 127.0.0.1 from one directory.

`make kafka` fetches the jars. What was found on a two-core machine with others at work (Kafka 4.3.1, Java 17):

- Formatting takes 1 s, a start 2-3 s and 2.5 s of CPU, an orderly stop 0.5 s, a start after kill() 3 s; twice to three
  times that while others compute. RSS is 220 MB, 270 MB after a million records; idle it takes 4 % of a core.
- A million records of 200 bytes cost it 1.0 s of CPU to take and 0.8 s to give, with QUICK_JVM. Without it is slower:
  2.0 and 1.5 s, since a run of a minute pays for compiling rather than gains by it.
- With the default `broker.session.timeout.ms` a start after kill() takes 16 s: the controller waits until the broker
  that was killed is dead by its clock. Hence one second here.
- The cleaner's default buffer is 128 MB of heap, taken at the start.
- Kafka's POM brings log4j and no binding for slf4j: without one a broker that cannot start says nothing.
- Since 4.0 retention and compaction first look 30 s after the start (`log.initial.task.delay.ms`).
- After a pause of more than a second the controller fences its own broker and lets it in again 5 ms later; a client
  that polled metadata did not see it.
- A client that does not trust the broker's certificate is told _SSL or _TRANSPORT, as it happens; only the text, which
  says "certificate verify failed", is the same.
- Ports are taken below the range from which Linux gives ports to clients: one from within it can be gone when a
  stopped broker wants it back.
- Kafka does not sync what it acknowledges. kill() keeps it (the page cache is the kernel's), a power cut would not.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.kafka.certificates import Authority
from tests.kafka.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
VERSION = "4.3.1"  # .ci/kafka/pom.xml pins it
LIBS = ROOT / ".cache" / f"kafka-{VERSION}" / "libs"

CLUSTER_ID = "Y29udmV5b3JkLXRlc3RzMQ"
USER, PASSWORD = "conveyord", "correct-horse"
START_SECONDS_MAX = 90  # ten times what a busy machine took
STOP_SECONDS_MAX = 30
LOG_LINES_SHOWN = 40
PORTS = range(20_000, 30_000)  # below the range of ports that Linux gives to clients

Listener = Literal["PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"]
LISTENERS: tuple[Listener, ...] = ("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL")
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

# Half the CPU of the defaults, at the start and for the first million records.
QUICK_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
HEAP = "-Xmx512m"

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "3",
    # One broker holds everything once.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # A killed broker may come back at once, and so may consumers: no test waits for a timeout in minutes.
    "broker.heartbeat.interval.ms": "200",
    "broker.session.timeout.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    # Retention and compaction are looked after at once, not after half a minute and every five.
    # Nothing is too old by default: a record with a timestamp of last year would be gone within the second.
    "log.retention.ms": "-1",
    "log.initial.task.delay.ms": "100",
    "log.retention.check.interval.ms": "500",
    "log.cleaner.backoff.ms": "100",
    # Small: heap and threads.
    "log.cleaner.dedupe.buffer.size": "4194304",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "background.threads": "2",
}

LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss.SSS} %p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
# Says the whole configuration at each start and for each client: thousands of lines.
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
logger.server.name = kafka.server.KafkaConfig
logger.server.level = warn
"""


def missing() -> str | None:
    """Why there is no broker here, or None if there is."""
    if not LIBS.is_dir():
        return f"{LIBS.relative_to(ROOT)} is not there: run `make kafka`"
    if shutil.which("java") is None:
        return "no java on the PATH: a broker needs Java 17 (Debian: apt-get install default-jre-headless)"
    return None


class Broker(Cluster):
    """A Kafka below `directory` that a test may stop, kill and pause. Made, it is formatted; start() runs it.

    `authority.path` is what a client has to trust. `log_path` holds what it says, of all its starts.
    settings: server properties beside SETTINGS, or in their place.
    jvm: options beside the heap's.
    """

    def __init__(
        self, directory: Path, *, settings: Mapping[str, str] | None = None, jvm: tuple[str, ...] = QUICK_JVM
    ) -> None:
        self._directory = directory
        self._jvm = (HEAP, *jvm, f"-Dlog4j2.configurationFile={directory / 'log4j2.properties'}")
        self._ports = dict(zip((*LISTENERS, "CONTROLLER"), _free_ports(len(LISTENERS) + 1), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        self.log_path = directory / "broker.log"
        self.authority = Authority(directory)
        super().__init__(self.address("PLAINTEXT"))
        self._properties = directory / "server.properties"
        lines = {**SETTINGS, **self._listening(), **(settings or {})}
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        (directory / "log4j2.properties").write_text(LOGGING)
        self._format()

    def address(self, listener: Listener) -> str:
        """host:port of a listener. It stays the same from start to start."""
        return f"127.0.0.1:{self._ports[listener]}"

    def secured(
        self, listener: Listener, *, mechanism: Mechanism = "SCRAM-SHA-512", password: str = PASSWORD
    ) -> dict[str, Any]:
        """What a client of librdkafka needs to connect to a listener."""
        wanted = {**self.settings, "bootstrap.servers": self.address(listener), "security.protocol": listener}
        if "SSL" in listener.split("_"):
            wanted["ssl.ca.location"] = str(self.authority.path)
        if listener.startswith("SASL"):
            wanted |= {"sasl.mechanism": mechanism, "sasl.username": USER, "sasl.password": password}
        return wanted

    # -------------------------------------------------------------------------- life

    @property
    def pid(self) -> int:
        """The process id; the broker has to be running."""
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process, paused or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> float:
        """Run the broker and wait until it and each partition answers; returns the seconds it took."""
        assert not self.running, "the broker is running"
        self.__dict__.pop("admin", None)  # one that knew the broker before may ask for its controller in vain
        began = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(self._properties)), stdout=log, stderr=log, start_new_session=True
            )
        # Kills the broker when this process ends, however it ends: then the other end of its input closes.
        self._watch = subprocess.Popen(
            ["sh", "-c", 'read _; kill -9 "$0"', str(self.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._wait_until_ready(began + START_SECONDS_MAX)
        return time.monotonic() - began

    def stop(self) -> None:
        """Let the broker end in an orderly way."""
        self.resume()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker by SIGKILL, paused or not. start() goes on with what it had."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze the broker: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after pause(); nothing happens if it was not paused."""
        self._signal(signal.SIGCONT)

    def restore(self) -> None:
        """Run again, whatever was done to the broker. That it ended by itself is not forgiven."""
        assert self._process is None or self.running, f"the broker ended by itself:\n{self.log_tail()}"
        if self.running:
            self.resume()
            self.__dict__.pop("admin", None)
        else:
            self.start()

    def log_tail(self) -> str:
        """The last lines that the broker said."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])

    # -------------------------------------------------------------------------- its own

    def _listening(self) -> dict[str, str]:
        key = self.authority.issue("broker")
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        listening = {name: f"{name}://127.0.0.1:{port}" for name, port in self._ports.items()}
        settings = {
            "log.dirs": str(self._directory / "data"),
            "controller.quorum.voters": f"1@127.0.0.1:{self._ports['CONTROLLER']}",
            "listeners": ",".join(listening.values()),
            "advertised.listeners": ",".join(listening[name] for name in LISTENERS),
            "listener.security.protocol.map": ",".join(
                f"{name}:{'PLAINTEXT' if name == 'CONTROLLER' else name}" for name in listening
            ),
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(key),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.path),
        }
        for name in ("sasl_plaintext", "sasl_ssl"):
            settings[f"listener.name.{name}.plain.sasl.jaas.config"] = f'{plain} required user_{USER}="{PASSWORD}";'
            settings[f"listener.name.{name}.scram-sha-256.sasl.jaas.config"] = scram
            settings[f"listener.name.{name}.scram-sha-512.sasl.jaas.config"] = scram
        return settings

    def _java(self, main: str, *arguments: str) -> list[str]:
        return ["java", *self._jvm, "-cp", f"{LIBS}/*", main, *arguments]

    def _format(self) -> None:
        users = []
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            users += ["--add-scram", f'{mechanism}=[name="{USER}",password="{PASSWORD}"]']
        command = self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(self._properties), *users)
        ended = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS_MAX, check=False)
        assert ended.returncode == 0, f"formatting the broker's directory failed:\n{ended.stdout}{ended.stderr}"

    def _wait_until_ready(self, deadline: float) -> None:
        admin = AdminClient(self.settings)
        while True:
            assert self.running, f"the broker ended:\n{self.log_tail()}"
            assert time.monotonic() < deadline, f"no answer after {START_SECONDS_MAX} s:\n{self.log_tail()}"
            with suppress(KafkaException):
                found = admin.list_topics(timeout=1)
                partitions = (part for topic in found.topics.values() for part in topic.partitions.values())
                if found.brokers and all(part.leader >= 0 for part in partitions):
                    break
        for name in found.topics:
            self.extents(name)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None and self.running, f"the broker is not running:\n{self.log_tail()}"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or self._watch is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        finally:
            self._process.kill()
            self._process.wait()
            # The watch first: it must not kill who has the process id next.
            self._watch.kill()
            self._watch.wait()
            assert self._watch.stdin is not None
            self._watch.stdin.close()
        self._process = self._watch = None


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError(f"no {count} free ports in {PORTS}")
