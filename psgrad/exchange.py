"""What a worker and the servers say to each other about chunks: pushes, whole or in parts, pulls.

A step is pushed in one of two ways::

    push                     judged as a whole, then chunk after chunk, the last layers first
    ready ... ready, settle  each chunk as soon as its gradient is final; judged at the end
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from psgrad.errors import ProtocolError
from psgrad.guard import StepVerdict
from psgrad.layout import Chunk
from psgrad.links import ServerLinks
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
        self._to_come: dict[int, int] = {}  # of the open step: those that are not final yet
        self._ready: set[str] = set()  # of the open step: those that are
        self._sent: dict[int, list[int]] = {}  # of the open step: chunks, by server
        self._weight = 1.0  # of the last push that was not empty

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
    ) -> None:
        """One message about ``chunk``, at the present clock."""
        header = Header(
            kind,
            layout=self.state.layout.digest,
            segment=chunk.segment,
            chunk=chunk.index,
            clock=self.clock,
            weight=weight,
            rate=self.rate,
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
        if self.is_open:
            raise ProtocolError(
                "push() in the middle of a step: ready() was called; end the step with step()"
            )
        if weight > 0 and not state.guard.settle(state.memory.grads):
            weight = 0.0
        self.clock += 1
        if encoder is not None and weight > 0:
            encoder.begin(self.clock, self._links.answered.rate, state.memory.grads)
        for chunk in state.trained:
            if weight == 0:
                self.send(kind, chunk)
            else:
                self._send_gradient(kind, chunk, weight)
        self._end(weight)

    def ready(self, names: Iterable[str]) -> None:
        """The gradients ``names`` are final: sends the chunks that are complete by that.

        What a codec encodes goes at the end: what it keeps back depends on the whole step.
        """
        if self._links.awaited:
            raise ProtocolError("ready() before the last step was answered: call wait() first")
        if not self._ready:
            self._to_come = dict(self._parts)
        for name in names:
            chunks = self.state.indices_of(name)
            if name in self._ready:
                raise ProtocolError(f"ready() was called twice in a step for {name!r}")
            self._ready.add(name)
            for index in chunks:
                if index not in self._trained:
                    continue
                self._to_come[index] -= 1
                if self._to_come[index] == 0 and self._encoder is None:
                    self._open(self.state.chunks[index], 1.0)
        self._links.drive()

    def settle(self, weight: float) -> None:
        """Ends the open step: sends the rest of its chunks, and what is to become of them all."""
        state, encoder = self.state, self._encoder
        if self._links.awaited:
            raise ProtocolError("step_async() before the last step was answered: call wait() first")
        early = {index for chunks in self._sent.values() for index in chunks}
        rest = [chunk for chunk in state.trained if chunk.index not in early]
        if encoder is None:
            verdict = self._open_bare(rest, weight)
        else:
            verdict = self._open_encoded(encoder, rest, weight)
        if not verdict.finite:
            weight = 0.0
        clipped = encoder is None and verdict.finite and verdict.scale != 1.0
        said = encode_json({"scale": verdict.scale}) if clipped else None
        self.clock += 1
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
            self._links.expect(server, chunks)
        self._ready.clear()
        self._sent.clear()
        self._end(weight)

    def wait(self, names: Iterable[str] | None = None) -> None:
        """Waits until the parameters ``names`` are those of the last step; None: all of them."""
        if names is None:
            self._links.await_answers()
        else:
            self._links.await_chunks({i for name in names for i in self.state.indices_of(name)})

    def finish(self) -> None:
        """Waits for the step that is under way, if one is."""
        if self._links.awaited:
            self._links.await_answers()

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

    def _open_bare(self, rest: Iterable[Chunk], weight: float) -> StepVerdict:
        """Sends what is left as it is; the servers look whether all is finite."""
        guard, grads = self.state.guard, self.state.memory.grads
        for chunk in rest:
            self._open(chunk, weight)
        self._links.await_answers()
        sound, self._links.is_sound = self._links.is_sound, True
        if weight == 0:
            return StepVerdict(0.0, 1.0)
        if sound and not guard.clips:
            guard.passed()
            return StepVerdict(math.nan, 1.0)
        verdict = guard.judge(grads)  # for the norm, or for the culprit
        if verdict.finite:
            guard.clip(grads, verdict)  # the servers do it to what they have received
        return verdict

    def _open_encoded(
        self, encoder: PushEncoder, rest: Iterable[Chunk], weight: float
    ) -> StepVerdict:
        """Sends what is left, which is all, by the codec: judged before anything is kept back."""
        guard, grads = self.state.guard, self.state.memory.grads
        verdict = guard.judge(grads) if weight > 0 else StepVerdict(0.0, 1.0)
        if weight > 0 and verdict.finite:
            guard.clip(grads, verdict)
            encoder.begin(self.clock + 1, self._links.answered.rate, grads)
        for chunk in rest:
            self._open(chunk, weight if verdict.finite else 0.0)
        return verdict

    def _open(self, chunk: Chunk, weight: float) -> None:
        """Sends a chunk of a step that has not ended, at the clock that it will have."""
        self._sent.setdefault(self.state.owner[chunk.index], []).append(chunk.index)
        self.clock += 1
        if weight == 0:
            self.send(Kind.STEP, chunk, flags=Flag.OPEN)
        else:
            self._send_gradient(Kind.STEP, chunk, weight, Flag.OPEN)
        self.clock -= 1

    def _send_gradient(self, kind: Kind, chunk: Chunk, weight: float, flags: int = 0) -> None:
        """A chunk of the gradient: encoded, in shared memory, or as it is."""
        state = self.state
        grad, payload = state.grads_of(chunk), None
        if self._encoder is not None:
            payload = self._encoder.encode(chunk, grad, self._links.link_rate)
        if payload is not None:
            self.send(kind, chunk, payload, weight, flags | Flag.ENCODED)
        elif kind is Kind.STEP and state.owner[chunk.index] in state.memory.takes:
            self.send(kind, chunk, None, weight, flags | Flag.SHARED)
            self._links.wire_nbytes += chunk.nbytes
        else:
            self.send(kind, chunk, grad, weight, flags)

    def _end(self, weight: float) -> None:
        self._weight = weight or self._weight
        self.rate = NO_RATE
