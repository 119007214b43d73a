"""What a worker and the servers say to each other about chunks: pushes, whole or in parts, pulls.

A step is pushed in one of two ways::

    push                     judged as a whole, then chunk after chunk
    ready ... ready, settle  chunks as soon as their gradient is final; judged at the end

In the second, a chunk leaves early when there is room for it in the window of its server, which
says when it has come. So a link that keeps up with the computation has carried all at the end, and
one that does not is not filled with what no answer can come for: the rest goes after the end, as
answers make room.

Whatever waits for answers goes in one order, on all workers and in both ways: the first layers
first, as the next forward pass needs them. Two orders, with windows that are smaller than a step,
could wait for each other.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

from psgrad.errors import NonFiniteError, ProtocolError
from psgrad.guard import StepVerdict
from psgrad.layout import Chunk
from psgrad.links import ServerLinks
from psgrad.marking import Marking, Position
from psgrad.messages import NO_RATE, Flag, Header, Kind, encode_json
from psgrad.push_encoder import PushEncoder
from psgrad.registered import Registered
from psgrad.transport import Buffer, Transport


class Exchange:
    """The chunk messages of one worker. ``encoder`` is None where gradients travel as they are."""

    def __init__(
        self,
        transport: Transport,
        links: ServerLinks,
        state: Registered,
        encoder: PushEncoder | None,
    ) -> None:
        self.clock = 0
        """How many steps were pushed."""
        self.rate = NO_RATE
        """The base learning rate that the next push sets."""
        self.state = state
        """The worker's arrays and chunks."""
        self._transport = transport
        self._links = links
        self._encoder = encoder
        self._trained = {chunk.index for chunk in state.trained}
        touches = Counter(i for chunks in state.chunks_of.values() for i in chunks)
        self._parts = {i: touches[i] for i in self._trained}  # parameters in each chunk
        self._rest: deque[Chunk] = deque()  # of the ended step: chunks that have not been sent
        self._rest_of = (0.0, NO_RATE)  # weight and rate of that step
        self._to_come: dict[int, int] = {}  # of the open step: those that are not final yet
        self._ready: set[str] = set()  # of the open step: those that are
        self._final: deque[Chunk] = deque()  # of the open step: chunks that may leave
        self._sent: dict[int, list[int]] = {}  # of the open step: chunks, by server
        self._weight = 1.0  # of the last push that was not empty
        self.marking = Marking(transport, links, state, encoder)

    @property
    def codecs_used(self) -> dict[str, int]:
        """How many chunks were encoded with each codec, by name."""
        return {} if self._encoder is None else dict(self._encoder.used)

    @property
    def is_open(self) -> bool:
        """Whether a part of a step has been pushed, and not its end."""
        return bool(self._ready)

    def send(
        self,
        kind: Kind,
        chunk: Chunk,
        payload: Buffer | None = None,
        weight: float = 0.0,
        flags: int = 0,
        rate: float = NO_RATE,
    ) -> None:
        """One message about ``chunk``, at the present clock."""
        header = Header(
            kind,
            layout=self.state.layout.digest,
            segment=chunk.segment,
            chunk=chunk.index,
            clock=self.clock,
            weight=weight,
            rate=rate,
            flags=flags,
        )
        server = self.state.owner[chunk.index]
        if flags & Flag.QUIET:
            self._links.tell(server, header, payload)
        else:
            self._links.request(server, header, payload)

    def push(self, kind: Kind, weight: float) -> None:
        """Pushes the gradient as one step; of weight 0 where it is not finite."""
        state, encoder = self.state, self._encoder
        if weight > 0 and not state.guard.settle(state.memory.grads):
            weight = 0.0
        self._tick()
        if encoder is not None and weight > 0:
            encoder.begin(self.clock, self._links.answered.rate, state.memory.grads)
        for chunk in state.trained:
            self._send_gradient(kind, chunk, weight, self.rate)
        self._end(weight)

    def ready(self, names: Iterable[str]) -> None:
        """The gradients ``names`` are final: sends chunks that are complete by that, if it may.

        What a codec encodes goes at the end: what it keeps back depends on the whole step.
        """
        self._check_answered("ready()")
        if not self._ready:
            self._to_come = dict(self._parts)
        found = {name: self.state.indices_of(name) for name in names}
        for name in found.keys() & self._ready:
            raise ProtocolError(f"ready() was called twice in a step for {name!r}")
        for name, chunks in found.items():
            self._ready.add(name)
            for index in chunks:
                if index not in self._trained:
                    continue
                self._to_come[index] -= 1
                if self._to_come[index] == 0 and self._encoder is None:
                    self._final.append(self.state.chunks[index])
        self._links.drive()
        while self._final and self._links.has_room(self.state.owner[self._final[0].index]):
            self._open(self._final.popleft(), 1.0)

    def settle(self, weight: float) -> None:
        """Ends the open step: says what is to become of it, and sends what of it has not left."""
        state = self.state
        self._check_answered("step_async()")
        early = {index for chunks in self._sent.values() for index in chunks}
        rest = [chunk for chunk in state.trained if chunk.index not in early]
        if self._encoder is None and all(self._is_shared(chunk) for chunk in rest):
            while rest:
                self._open(rest.pop(0), weight)
        failure = None
        try:
            verdict = self._judge(weight, looked_at=not rest)
        except NonFiniteError as error:  # the step ends all the same: a part of it has left
            verdict, failure = StepVerdict(math.nan, 0.0, culprit=""), error
        if not verdict.finite:
            weight = 0.0
        clipped = verdict.finite and verdict.scale != 1.0
        said = encode_json({"scale": verdict.scale}) if clipped else None
        self._tick()
        for server, chunks in sorted(self._sent.items()):
            end = Header(
                Kind.SETTLE,
                layout=state.layout.digest,
                clock=self.clock,
                weight=weight,
                rate=self.rate,
                sequence=len(chunks),
            )
            self._links.tell(server, end, said)
            self._links.expect(chunks)
        if self._encoder is not None and weight > 0:
            self._encoder.begin(self.clock, self._links.answered.rate, state.memory.grads)
        self._links.awaited.update(chunk.index for chunk in rest)
        self._rest.extend(rest)
        self._rest_of = weight, self.rate
        self._ready.clear()
        self._final.clear()
        self._sent.clear()
        self._end(weight)
        self._send_rest()
        if failure is not None:
            raise failure

    def wait(self, names: Iterable[str] | None = None) -> None:
        """Waits until the parameters ``names`` are those of the last step; None: all of them."""
        chunks = None
        if names is not None:
            chunks = {index for name in names for index in self.state.indices_of(name)}
        awaited = self._links.awaited
        while chunks is None or not awaited.isdisjoint(chunks):
            self._send_rest()
            self.mark_if_due()
            if chunks is None and not self._rest and self._links.idle:
                return
            self._links.take()

    def abandon(self) -> None:
        """Sends what is left of the step that is under way; one that is open gets an empty end."""
        if self.is_open:
            self.settle(0.0)
        while self._rest:
            self._send_rest()
            if self._rest:
                self._links.take()

    def finish(self) -> None:
        """Waits for the step that is under way, if one is."""
        if self._links.awaited:
            self.wait()

    def mark_if_due(self) -> None:
        """Sends markers where a checkpoint is to cut: behind a whole step, answered or not.

        An answer may wait for workers that wait for a marker. What has left of an open step is of
        the next clock, and no shard has heard of it.
        """
        if not self._rest:
            self.marking.mark_if_due(self.position)

    @property
    def position(self) -> Position:
        """Where this worker is, for a checkpoint."""
        return Position(self.clock, self._weight, self.rate)

    def go_to(self, position: Position) -> None:
        """Goes on from a checkpoint."""
        self.clock, self._weight, self.rate = position

    def flush_residual(self) -> None:
        """Pushes what was never sent, so that leaving loses nothing."""
        state, encoder = self.state, self._encoder
        if encoder is None:
            return
        kept = {chunk.index: encoder.kept(chunk) for chunk in state.trained}
        if all(residual is None for residual in kept.values()):
            return
        self.clock += 1
        for chunk in state.trained:
            residual = kept[chunk.index]
            if residual is None:
                self.send(Kind.PUSH, chunk, flags=Flag.QUIET)
                continue
            grad = state.grads_of(chunk)
            np.copyto(grad, residual)
            residual.fill(0.0)
            self.send(Kind.PUSH, chunk, grad, self._weight, Flag.QUIET)
        self._transport.flush()

    def check_whole(self, call: str) -> None:
        """Raises ``ProtocolError`` where ``call`` would come in the middle of a step."""
        if self.is_open:
            raise ProtocolError(
                f"{call} in the middle of a step: ready() was called; end the step with step()"
            )
        self._check_answered(call)

    def _check_answered(self, call: str) -> None:
        if self._links.awaited:
            raise ProtocolError(f"{call} before the last step was answered: call wait() first")

    def _judge(self, weight: float, looked_at: bool) -> StepVerdict:
        """The verdict of the step that ends; clips what of the gradient has not left.

        ``looked_at``: servers have, or will have, looked whether all of it is finite.
        """
        guard, grads = self.state.guard, self.state.memory.grads
        if self._sent:
            while not self._links.idle:
                self.mark_if_due()  # pushes before it may wait for workers that wait for a marker
                self._links.take()
        sound, self._links.is_sound = self._links.is_sound, True
        if weight == 0:
            return StepVerdict(0.0, 1.0)
        if looked_at and sound and not guard.clips:
            guard.passed()
            return StepVerdict(math.nan, 1.0)
        verdict = guard.judge(grads)
        if verdict.finite:
            guard.clip(grads, verdict)  # the servers do it to what they have received
        return verdict

    def _is_shared(self, chunk: Chunk) -> bool:
        """Whether the server reads the chunk's gradient where it lies."""
        return self.state.owner[chunk.index] in self.state.memory.takes

    def _open(self, chunk: Chunk, weight: float) -> None:
        """Sends a chunk of a step that has not ended, at the clock that it will have."""
        self._sent.setdefault(self.state.owner[chunk.index], []).append(chunk.index)
        self.clock += 1
        self._send_gradient(Kind.STEP, chunk, weight, NO_RATE, Flag.OPEN)
        self.clock -= 1

    def _send_rest(self) -> None:
        """Sends what the windows have room for."""
        weight, rate = self._rest_of
        while self._rest and self._links.has_room(self.state.owner[self._rest[0].index]):
            self._send_gradient(Kind.STEP, self._rest.popleft(), weight, rate)

    def _send_gradient(
        self, kind: Kind, chunk: Chunk, weight: float, rate: float, flags: int = 0
    ) -> None:
        """A chunk of the gradient: encoded, in shared memory, or as it is; without weight, none."""
        if weight == 0:
            self.send(kind, chunk, flags=flags, rate=rate)
            return
        grad, payload = self.state.grads_of(chunk), None
        if self._encoder is not None:
            payload = self._encoder.encode(chunk, grad, self._links.link_rate)
        if payload is not None:
            self.send(kind, chunk, payload, weight, flags | Flag.ENCODED, rate)
        elif kind is Kind.STEP and self._is_shared(chunk):
            self.send(kind, chunk, None, weight, flags | Flag.SHARED, rate)
            self._links.wire_nbytes += chunk.nbytes
        else:
            self.send(kind, chunk, grad, weight, flags, rate)

    def _tick(self) -> None:
        self.clock += 1
        self.marking.pushed()

    def _end(self, weight: float) -> None:
        self._weight = weight or self._weight
        self.rate = NO_RATE
