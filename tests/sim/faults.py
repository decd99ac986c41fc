"""The menu of faults, and what a seed draws from it: which there are, how hard they are, and how often (swarm testing).

Each concern draws from a stream of its own, so that a fault that is switched off does not change what else is drawn.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from random import Random

from conveyord.core.raft.types import Options

PROFILES = ("three", "five", "seven", "members", "corruption")
_PROFILE_OF_SEED = ("three", "five", "three", "members", "corruption", "three", "five", "seven")

NETWORK = (
    *(
        "cut_leader",
        "cut_one",
        "cut_one_way",
        "cut_in_two",
        "cut_to_a_ring",
        "flap",
        "mend_network",
        "reset_connection",
    ),
)
PROCESS = (
    *(
        "crash",
        "crash_all",
        "crash_leader",
        "crash_receivers",
        "crash_inside_a_burst",
        "crash_before_persisted",
        "crash_at_commit",
    ),
    *("hunt_leaders", "race_snapshots", "freeze", "jump_clock"),
)
DISK = ("stall_disk", "fill_disk", "fail_sync", "flip_bit", "lose_disk")
MEMBERS = ("transfer", "change_members", "swap_members", "remove_leader", "replace_member", "readmit_member")
ACTS = (*NETWORK, *PROCESS, *DISK, *MEMBERS)
"""What the nemesis does, by the names of its methods."""

RATES = (
    "loss",
    "twice",
    "damage",
    "tail",
    "reorder",
    "far",
    "skew",
    "reconnect",
    "bursts",
    "lost_answers",
    "failed_streams",
    "late_streams",
)
"""What is there all the time. Probabilities are per message, stream or answer; skew is a share of the clock's rate;
far: seconds between the last node and all others; reconnect: seconds, at most, until a node that has started again
hears others and is heard (streams of snapshots have connections of their own); bursts: of proposals, per second."""


@dataclass(slots=True)
class Faults:
    """What is wrong with the world of a seed. Times in seconds; pace: between two acts of the nemesis.
    threshold: entries from one snapshot to the next. window: entries that a node which starts finds in memory.
    """

    profile: str
    nodes: int
    acts: tuple[str, ...]
    pace: float
    latency: float
    disk: float
    apply: float
    stream: float
    threshold: int
    window: int
    options: Options
    loss: float = 0.0
    twice: float = 0.0
    damage: float = 0.0
    tail: float = 0.0
    reorder: float = 0.0
    far: float = 0.0
    skew: float = 0.0
    reconnect: float = 0.0
    bursts: float = 0.0
    lost_answers: float = 0.0
    failed_streams: float = 0.0
    late_streams: float = 0.0
    has_group_commit: bool = field(default=True)

    def told(self) -> str:
        """All of it, in one line."""
        found = {name: value for name, value in asdict(self).items() if name not in ("options", "acts")}
        options = asdict(self.options)
        return f"{found} acts={','.join(self.acts)} options={options}"

    def heal(self) -> None:
        """Nothing is wrong any more, but for clocks, which never are right."""
        self.loss = self.twice = self.damage = self.tail = self.far = self.reconnect = self.bursts = 0.0
        self.lost_answers = self.failed_streams = self.late_streams = 0.0


def profile_of(seed: int) -> str:
    """The profile of a seed that none is named for: of eight, three clusters of three, two of five, one of seven, one
    with much ado about members, one with sick disks.
    """
    return _PROFILE_OF_SEED[seed % len(_PROFILE_OF_SEED)]


def draw(seed: int, profile: str, without: frozenset[str] = frozenset()) -> Faults:
    """What a seed is about. without: names of acts or rates that are switched off."""
    random = Random(f"{seed}/{profile}/faults")
    nodes = {"three": 3, "five": 5, "seven": 7}.get(profile) or random.choice([3, 4, 5])
    faults = Faults(
        profile=profile,
        nodes=nodes,
        acts=_draw_acts(random, profile),
        pace=random.choice([0.3, 1.0, 1.0, 3.0]),
        latency=random.choice([0.0005, 0.002, 0.01]),
        disk=random.choice([0.0005, 0.003, 0.02]),
        apply=random.choice([0.0, 0.002, 0.02]),
        stream=random.choice([0.01, 0.05, 0.5]),
        threshold=random.randint(10, 50),
        window=random.choice([0, 20]),
        options=_draw_options(random, nodes),
        has_group_commit=random.random() < 0.8,
    )
    rates = {
        "loss": (0.5, [0.01, 0.05, 0.2]),
        "twice": (0.4, [0.02, 0.2]),
        "damage": (0.3, [0.02]),
        "tail": (0.4, [0.01, 0.1]),
        "reorder": (0.4, [1.0]),
        "far": (0.3, [0.05, 0.15]),
        "skew": (0.4, [0.1]),
        "reconnect": (0.4, [0.2, 1.0]),
        "bursts": (0.5, [0.3, 1.0]),
        "lost_answers": (0.5, [0.05, 0.3]),
        "failed_streams": (0.5, [0.3]),
        "late_streams": (0.5, [1.0]),
    }
    for name, (share, values) in rates.items():
        is_on, value = random.random() < share, random.choice(values)
        setattr(faults, name, value if is_on and name not in without else 0.0)
    faults.acts = tuple(act for act in faults.acts if act not in without)
    return faults


def _draw_acts(random: Random, profile: str) -> tuple[str, ...]:
    always = {"members": MEMBERS, "corruption": DISK}.get(profile, ())
    count = random.randint(2, len(ACTS) - 6)
    chosen = {*random.sample(ACTS, count), *always}
    return tuple(act for act in ACTS if act in chosen)


def _draw_options(random: Random, nodes: int) -> Options:
    timeout = random.choice([0.3, 0.5]) if nodes <= 3 else 0.5
    heartbeats = random.choice([3, 5])
    return Options(
        election_timeout_seconds=timeout,
        heartbeat_seconds=timeout / heartbeats,
        tell_seconds=0.0 if heartbeats == 3 else 0.002,  # not drawn by itself: lives of before stay what they were
        append_bytes=random.choice([1, 200, 1_000, 10_000]),
        inflight_messages=random.choice([1, 2, 8, 64]),
        inflight_bytes=random.choice([300, 8 << 20]),
        inflight_bytes_min=300 if heartbeats == 3 else 8 << 20,  # likewise
        uncommitted_bytes=random.choice([500, 64 << 20]),
        apply_bytes=random.choice([200, 1_000, 4 << 20]),
        window_bytes=random.choice([0, 1_000, 10_000]),
        promotion_lag=10,
        reads=random.choice([2, 10_000]),
    )
