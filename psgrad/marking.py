"""A worker's part in checkpoints: markers on every link, with its own state before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from psgrad.errors import CheckpointError, ConfigError
from psgrad.links import ServerLinks
from psgrad.messages import Flag, Header, Kind, encode_json
from psgrad.push_encoder import PushEncoder
from psgrad.registered import Registered
from psgrad.resuming import Resuming
from psgrad.transport import Transport
from psgrad.worker_state import WorkerState


class Position(NamedTuple):
    """Where a worker is in its run."""

    clock: int
    weight: float  # samples of its last push that was not empty
    rate: float  # the learning rate that its next push sets, or ``NO_RATE``


class Marking:
    """The markers of one worker, and what goes into a checkpoint with them."""

    def __init__(
        self,
        transport: Transport,
        links: ServerLinks,
        state: Registered,
        encoder: PushEncoder | None,
    ) -> None:
        self.over = False
        """Whether the worker has left: nobody waits for its markers."""
        self.kept: Mapping[str, Any] = {}
        """What goes into a checkpoint beside the worker's own state, as of its last push."""
        self.next: Mapping[str, Any] = {}
        """The same as of the push to come."""
        self.paused = False
        """Whether there is something to keep that is not known yet."""
        self._transport = transport
        self._links = links
        self._state = state
        self._encoder = encoder

    @property
    def wanted(self) -> bool:
        """Whether there are checkpoints in this run."""
        return bool(self._links.markers.every)

    def mark_if_due(self, position: Position) -> None:
        """Sends markers, if one is due; ``position`` is behind a whole step."""
        markers = self._links.markers
        number = markers.due(position.clock)
        if number is None or self.over or self.paused:
            return
        markers.last = number
        state = self._whole(position)
        digest = self._state.layout.digest
        for chunk in self._state.chunks:
            header = Header(Kind.STATE, layout=digest, segment=chunk.segment, chunk=chunk.index)
            for row, values in enumerate(state.rows.values()):
                part = values[chunk.start : chunk.stop]
                server = self._state.owner[chunk.index]
                self._links.tell(server, header._replace(version=row), part)
        said = encode_json({"rows": list(state.rows), "state": state.record})
        flags = Flag.LAST if markers.stops and not markers.asked else 0
        mark = Header(Kind.MARK, clock=position.clock, sequence=number, flags=flags)
        self._links.tell_all(mark, said)
        self._transport.flush()  # the rows are the state itself

    def pushed(self) -> None:
        """The next push begins: from now on it is the last one."""
        self.kept = self.next

    def last_words(self, position: Position) -> bytes | None:
        """What a worker that leaves gives to checkpoints to come."""
        return encode_json({"state": self._whole(position).record}) if self.wanted else None

    def load(self, resuming: Resuming, worker: int) -> None:
        """Goes on from a checkpoint with what guard and encoder had kept.

        Raises ``CheckpointError`` where that is of other options.
        """
        record = resuming.record_of(worker)
        if resuming.same_number:
            self._state.guard.load_state_dict(record.get("guard", {}))
            self.kept = self.next = resuming.all_kept(worker)
        mine = {} if self._encoder is None else self._encoder.state_dict()
        try:
            state = resuming.encoder_state(worker, mine)
            if self._encoder is not None:
                self._encoder.load_state_dict(state)
            elif state:
                raise ConfigError(f"the saved state has {', '.join(sorted(state))}")
        except ConfigError as error:
            raise CheckpointError(
                f"{error}; resume with the codec and feedback of the saved run"
            ) from error

    def _whole(self, position: Position) -> WorkerState:
        state = {
            **position._asdict(),
            "guard": self._state.guard.state_dict(),
            "encoder": {} if self._encoder is None else self._encoder.state_dict(),
            "kept": dict(self.kept),
        }
        return WorkerState.of(state, self._state.layout.size)
