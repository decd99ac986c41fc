"""What stands before every sink: it drops what the sink has already, and speaks the pipeline's own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.engine.messages import Ack, Batch
from conveyord.engine.provenance import COLUMNS, with_own_source


class Gate:
    """Decides batch by batch for one sink. Pure apart from acknowledging what it drops.

    A batch that went through does not go through again: what an earlier run spilled comes first, and then
    from the source too, where another sink lacks it.
    """

    def __init__(
        self, stage: str, held: Positions | None, *, names: Mapping[str, str], keeps_provenance: bool = True
    ) -> None:
        """held: what the sink has, under the pipeline's own names. names: the run's name of each source by
        which pipelines that share it are told apart, to the pipeline's own.
        """
        self._stage = stage
        self._held = held
        self._names = {run: own for run, own in names.items() if run != own}
        self._keeps_provenance = keeps_provenance
        self._passed: dict[Partition, int] = {}
        self._doubles: list[Ack] = []  # of batches that went through before, perhaps not durable yet

    @property
    def is_open(self) -> bool:
        """Whether every message goes through as it is."""
        return self._held is None and not self._names and self._keeps_provenance

    def admit(self, batch: Batch) -> Batch | None:
        """The batch as the sink is to see it, or None after dropping one that it has.

        Raises Refused if the sink has a part of it: sources end batches where sinks are, so that never
        happens unless a source broke its word.
        """
        if self._names:
            spans = tuple(replace(span, partition=self._own(span.partition)) for span in batch.spans)
            states = {self._names.get(source, source): state for source, state in batch.states.items()}
            data = with_own_source(batch.data, self._names)
            batch = replace(batch, data=data, spans=spans, states=states)
        if self._held is not None:
            reached = [self._reached(span) for span in batch.spans]
            if all(reached):
                self._drop(batch, self._held)
                return None
            if any(reached):
                raise Refused(f"sink {self._stage!r}: it holds some of the records of one batch and not the others")
            self._passed.update((span.partition, span.end) for span in batch.spans)
            batch = self._with_doubles(batch)
        if not self._keeps_provenance:
            kept = [name for name in batch.data.schema.names if name not in COLUMNS]
            if len(kept) < len(batch.data.schema.names):
                batch = replace(batch, data=batch.data.select(kept))
        return batch

    def _drop(self, batch: Batch, held: Positions) -> None:
        if all(held.covers(span) for span in batch.spans):
            batch.ack.settle()
        else:
            self._doubles.append(batch.ack)

    def _with_doubles(self, batch: Batch) -> Batch:
        """`batch`, settling with it the doubles of what went before: a sink settles in order."""
        if not self._doubles:
            return batch
        acks, self._doubles = [*self._doubles, batch.ack], []

        def settle_all() -> None:
            for ack in acks:
                ack.settle()

        return replace(batch, ack=Ack(settle_all, root=batch.ack.root))

    def _own(self, partition: Partition) -> Partition:
        return Partition(self._names.get(partition.source, partition.source), partition.name)

    def _reached(self, span: Span) -> bool:
        """Whether the sink has all of `span`; else it must have nothing of it."""
        assert self._held is not None
        position = self._held.get(span.partition)
        offset = max(-1 if position is None else position.offset, self._passed.get(span.partition, -1))
        if offset <= span.first:
            return False
        if offset >= span.end:
            return True
        raise Refused(
            f"sink {self._stage!r}: it holds {span.partition.name} up to {offset}, and a batch covers "
            f"{span.first} to {span.end}; the source did not end a batch there"
        )
