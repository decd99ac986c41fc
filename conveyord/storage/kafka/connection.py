"""How a Kafka cluster is reached, and the first contact with it, which fails within seconds and says why."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from conveyord.core.errors import ConfigError, Retryable
from conveyord.storage.kafka.errors import as_conveyord_error

if TYPE_CHECKING:
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import AdminClient, ClusterMetadata

Client = TypeVar("Client")
OnError = Callable[["KafkaError"], None]

# A client that lost a broker tries again at once and then ever more slowly; ten seconds, its default, is long for a
# broker that has just come back.
RECONNECT_MS_MAX = 2_000
CLIENT_ID = "conveyord"
FIRST_LOOK_SECONDS, SECOND_LOOK_SECONDS = 1.0, 2.0
"""After which it is seen whether somebody said no: librdkafka goes on trying as long as it may, whatever it hears."""
AGAIN_SECONDS = 1.0
"""For the first answer where nobody gave one just before: a stage that tries four times would be silent for as many
times `connect_seconds` else.
"""
LISTENS_SECONDS = 1.0
SOMETHING_LISTENS = "Something listens there: does it hang, or does it want TLS or a password (`security`)?"
LOG = logging.getLogger("librdkafka")
"""What librdkafka says by itself, which would go to stderr else. `on_error` and the answers say what a user must know,
so this is for those who debug: others see none of it, what is fatal included.
"""
LOG.addFilter(lambda _record: LOG.isEnabledFor(logging.DEBUG))
LOG_LEVEL_NOTHING, LOG_LEVEL_INFO = 0, 6  # of librdkafka; what is fatal it says at any level


@dataclass(slots=True)
class Silence:
    """Whether nobody had answered when somebody last tried. Shared by those who try one after the other."""

    is_known: bool = False


@dataclass(frozen=True, slots=True)
class Connection:
    """brokers: `host:port,...` to begin with. settings: of librdkafka, secrets in clear. connect_seconds: for the
    first answer. silence: while it is known, a first answer is waited for no longer than AGAIN_SECONDS.
    """

    brokers: str
    settings: Mapping[str, str]
    connect_seconds: float
    silence: Silence = field(default_factory=Silence, compare=False)

    def __repr__(self) -> str:
        return f"Connection({self.brokers!r})"  # settings hold passwords

    def client(self, own: Mapping[str, Any], *, on_error: OnError | None = None) -> dict[str, Any]:
        """The configuration of one client. own: what its kind needs; goes before `settings`.

        on_error: called by the client's polls with what it would otherwise print on stderr.
        """
        debugs = LOG.isEnabledFor(logging.DEBUG)
        return {
            "client.id": CLIENT_ID,
            "reconnect.backoff.max.ms": RECONNECT_MS_MAX,
            "socket.connection.setup.timeout.ms": max(1_000, int(self.connect_seconds * 1000)),
            **self.settings,
            "bootstrap.servers": self.brokers,
            "logger": LOG,
            "log_level": LOG_LEVEL_INFO if debugs else LOG_LEVEL_NOTHING,
            "error_cb": on_error or (lambda _error: None),
            **own,
        }

    def made(
        self,
        kind: Callable[[dict[str, Any]], Client],
        own: Mapping[str, Any],
        *,
        on_error: Callable[[KafkaError], None],
    ) -> Client:
        """A client of `kind`, with `client`'s configuration. Connects to nothing yet.

        Raises ConfigError if a setting is refused.
        """
        from confluent_kafka import KafkaException

        try:
            return kind(self.client(own, on_error=on_error))
        except KafkaException as error:
            raise as_conveyord_error(error.args[0], self.brokers) from error
        except (TypeError, ValueError) as error:  # what the binding itself checks
            raise ConfigError(f"client: {error}; mend the setting") from error


class Contact:
    """An admin client whose failures are told as sentences. One thread at a time."""

    def __init__(self, connection: Connection, *, may_make_topics: bool = False) -> None:
        """Raises ConfigError if librdkafka refuses a setting. Connects to nothing yet.

        may_make_topics: a broker that makes topics by itself makes one that is asked for, and is not there.
        """
        from confluent_kafka.admin import AdminClient

        self._connection = connection
        self._told: list[KafkaError] = []
        self._was_answered = False
        own = {"allow.auto.create.topics": may_make_topics}
        self.admin: AdminClient = connection.made(AdminClient, own, on_error=self._told.append)

    @property
    def connect_seconds(self) -> float:
        """How long the first answer may take."""
        return self._connection.connect_seconds

    def metadata(self, topic: str | None = None) -> ClusterMetadata:
        """What the cluster says of itself and its topics, or of one. Waits `connect_seconds` at most, or less: see
        `Connection`.

        Raises ConfigError if it does not let us in, Retryable if nobody answers.
        """
        from confluent_kafka import KafkaException

        self.admin.poll(0)  # what was said since the last look waits in a queue that knows no end
        self._told.clear()
        silence, left = self._connection.silence, self._connection.connect_seconds
        if silence.is_known and not self._was_answered:
            left = min(AGAIN_SECONDS, left)
        for share in (FIRST_LOOK_SECONDS, SECOND_LOOK_SECONDS, left):
            seconds = min(share, left)
            left -= seconds
            try:
                found = self._listed(topic, seconds)
            except KafkaException as error:
                self.admin.poll(0)
                if left <= 0 or self._is_hopeless():
                    silence.is_known = True
                    raise self.failure(error.args[0]) from error
            else:
                self._was_answered, silence.is_known = True, False
                return found
        raise AssertionError("the last look takes all that is left")

    def _listed(self, topic: str | None, seconds: float) -> ClusterMetadata:
        if topic is None:
            return self.admin.list_topics(timeout=seconds)
        return self.admin.list_topics(topic, timeout=seconds)

    def _is_hopeless(self) -> bool:
        """Whether waiting on would change nothing: we are not let in, or nobody is there at any of the addresses."""
        said = {error.name() for error in self._told}
        return "_ALL_BROKERS_DOWN" in said or any(
            as_conveyord_error(error, self._connection.brokers).code == "CONFIG" for error in self._told
        )

    def failure(self, error: KafkaError) -> Exception:
        """What stands behind `error`: a request only times out, the reason comes by the way of `error_cb`."""
        told = [as_conveyord_error(one, self._connection.brokers) for one in (*self._told, error)]
        # The first that someone must mend, else the first that names an address.
        found = min(told, key=lambda one: (one.code != "CONFIG", "_ALL_BROKERS_DOWN" in str(one)))
        if found.code == "UNAVAILABLE" and self._is_hopeless() and _listens(self._connection.brokers):
            return Retryable(f"{found}. {SOMETHING_LISTENS}")
        return found


def _listens(brokers: str) -> bool:
    """Whether somebody takes connections at the first address."""
    host, _, port = brokers.partition(",")[0].strip().rpartition(":")
    with suppress(OSError, ValueError), socket.create_connection((host.strip("[]"), int(port)), LISTENS_SECONDS):
        return True
    return False
