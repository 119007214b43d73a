"""The worker's program: the journey of a gradient, from top to bottom.

::

    register   worker 0's initial values go out, everyone's parameters come in
    step       check -> (clip) -> push every chunk, the last layers first -> pull what is due
    leave      no more pushes: nobody waits for this worker any longer
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgrad.arrays import Arrays
from psgrad.errors import ConfigError, LayoutError, ProtocolError, PsgradError
from psgrad.layout import Chunk, Layout
from psgrad.links import ServerLinks
from psgrad.messages import NO_RATE, Flag, Header, Kind, Verdict, decode_json, encode_json
from psgrad.options import Options
from psgrad.push_encoder import PushEncoder
from psgrad.record import Recorder
from psgrad.registered import Registered
from psgrad.roles import Roles
from psgrad.sharing import Offer, WorkerMemory
from psgrad.transport import Buffer, Transport


class Worker:
    """One worker rank, handed to ``main`` by ``psgrad.run``."""

    def __init__(
        self,
        transport: Transport,
        roles: Roles,
        options: Options,
        run: int,
        comm: Any = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.rank = roles.worker_of(transport.rank)
        """This worker's index, 0 to size - 1; not the MPI rank."""
        self.size = roles.workers
        """How many workers there are."""
        self.comm = comm
        """A communicator of the workers only."""
        self.notice = ""
        """What the servers had to say of the registration, such as the memory that pulls need."""
        self.clock = 0
        """How many steps this worker has pushed."""
        self._transport = transport
        self._roles = roles
        self._options = options
        self._recorder = recorder
        self._links = ServerLinks(
            transport, roles, run, options.window, options.compression.pull, recorder
        )
        self._weight = 1.0  # of the last push that was not empty
        self._state: Registered | None = None
        self._encoder: PushEncoder | None = None
        self._next_rate = NO_RATE
        self._rendezvous = 0
        self._left = False

    @property
    def params(self) -> Arrays:
        """The parameters: named views into the memory that pulls are received into.

        Read-only where a server of this node has them in the same memory, and where pulls are
        differences; copy what you want to change.
        """
        return self._registered.params

    @property
    def grads(self) -> Arrays:
        """The gradients: named views into the memory that ``step()`` sends without a copy."""
        return self._registered.grads

    @property
    def layout(self) -> Layout:
        """How the parameters lie in the flat vector."""
        return self._registered.layout

    @property
    def learning_rate(self) -> float:
        """The next update's rate by the last answer, before segment scales; NaN before one."""
        return self._links.answered.rate

    @property
    def staleness(self) -> int:
        """How many steps this worker was ahead of the slowest one, in its last pull."""
        return self._links.answered.staleness

    @property
    def updates(self) -> int:
        """How many updates the chunk of the last answer has had."""
        return self._links.answered.version

    @property
    def wire_nbytes(self) -> int:
        """Bytes sent and received by this worker: headers, payloads and those in shared memory."""
        return self._links.wire_nbytes

    @property
    def skipped(self) -> int:
        """How many steps of this worker were not finite and were not applied."""
        return 0 if self._state is None else self._state.guard.skipped

    @property
    def codecs_used(self) -> dict[str, int]:
        """How many chunks this worker has encoded with each codec, by name."""
        return {} if self._encoder is None else dict(self._encoder.used)

    def now(self) -> float:
        """Seconds since an arbitrary moment, on the transport's clock."""
        return self._transport.now()

    def sleep(self, seconds: float) -> None:
        """Lets ``seconds`` pass on the transport's clock."""
        self._transport.sleep(seconds)

    def register(self, arrays: Mapping[str, Any]) -> Arrays:
        """Announces the parameters and returns them as views that every pull refreshes in place.

        Every worker calls it once, with the same names, shapes and order; float32 only. Worker 0's
        values win (where its main has returned already: those of the first that registers).
        Raises ``LayoutError`` on all workers, naming the one that differs.
        """
        if self._state is not None:
            raise LayoutError("register() takes all parameters in one call, it was called twice")
        try:
            layout = Layout.of(arrays, self._options.segments)
            record: dict[str, Any] = {"layout": asdict(layout)}
        except (ConfigError, LayoutError) as problem:
            record = {"problem": str(problem)}
        handle = None
        for header, payload in self._links.ask_all(
            Header(Kind.REGISTER), Kind.REGISTERED, encode_json(record)
        ):
            answer = decode_json(payload)
            if header.verdict is Verdict.REFUSED:
                raise self._alike(LayoutError(answer["error"]), answer["first"])
            if self._roles.same_node(answer["server"], self._transport.rank):
                handle = answer["params"] or handle
        self.notice = answer["notice"]
        memory = self._share(layout, handle)
        servers = self._roles.servers
        self._state = state = Registered.of(layout, self._options, servers, self.rank, memory)
        self._encoder = self._make_encoder(state)
        self._links.receive_params_into(state.params_of, state.take_shared)
        if self.rank == answer["first"]:
            initial = state.flattened(arrays)
            for chunk in state.chunks:
                self._send_chunk(Kind.INIT, chunk, initial[chunk.start : chunk.stop])
            self._links.await_answers()
        self.pull(dense=True)
        return state.params

    def step(self, grads: Mapping[str, ArrayLike] | None = None, weight: float = 1.0) -> None:
        """Pushes a gradient and pulls what it makes due: ``push`` and ``pull`` in one message.

        ``grads`` is the gradient of the mean loss over ``weight`` samples, copied into ``grads``;
        None sends ``self.grads`` as it is. When it returns, the parameters are fresh: in sync mode
        they hold every worker's gradient of this clock, otherwise they rest on all pushes up to
        clock - s, with the bound s. Segments that other workers train are left to ``pull``.

        A gradient with NaN or infinity is not applied, not even a part of it: the step counts in
        ``skipped`` and moves the clock. Raises ``NonFiniteError`` after 10 of them in a row.
        """
        self._push(Kind.STEP, grads, weight)
        self._links.await_answers()

    def push(self, grads: Mapping[str, ArrayLike] | None = None, weight: float = 1.0) -> None:
        """Pushes a gradient like ``step`` but returns as soon as ``grads`` may be written again."""
        self._registered.memory.detach()  # others may close this round and change parameters
        self._push(Kind.PUSH, grads, weight)
        self._transport.flush()

    def pull(self, names: Iterable[str] | None = None, *, dense: bool = False) -> None:
        """Fetches parameters at this worker's clock: those of ``names``, or all of them.

        Chunks are fetched whole, so neighbours of a named tensor may become fresh too. ``dense``
        brings them as the servers have them, in float32, whatever the pull codec.
        """
        state = self._registered
        wanted = None if names is None else set(state.params(names))
        flags = Flag.DENSE if dense else 0

        def fetch() -> None:
            for chunk in state.touched_by(wanted):
                self._send_chunk(Kind.PULL, chunk, flags=flags)
            self._links.await_answers()

        if self._links.idle:
            self._links.timed(fetch)
        else:
            fetch()

    def set_lr(self, rate: float) -> None:
        """Sets the base learning rate from this worker's next push on, for all workers.

        It takes effect at that clock on every chunk, of every server, that this worker trains; the
        schedule multiplies it.
        In sync mode, two workers that set different rates at one clock are an error.
        """
        if not (math.isfinite(rate) and rate >= 0):
            raise ConfigError(f"learning rate must be finite and at least 0, got {rate}")
        self._next_rate = float(rate)

    def leave(self) -> None:
        """Ends this worker's pushes: rounds close and bounds hold without it. Pulls still work.

        What error feedback has kept back is pushed first, as float32: one more step, which nobody
        waits for.
        """
        if self._left or self._state is None:
            return
        self._links.await_answers()
        self._state.memory.detach()  # rounds close without this worker from now on
        if self._encoder is not None:
            self._flush_residual(self._state, self._encoder)
        self._links.ask_all(Header(Kind.LEAVE, clock=self.clock), Kind.LEFT)
        self._left = True

    def mean(self, values: Mapping[str, float], weight: float = 1.0) -> dict[str, float]:
        """The weighted mean of each value over all workers whose main is still running.

        A rendezvous: every such worker must call it, in the same order as other rendezvous, with
        the same names. Computed in float64 in worker order.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight must be finite and at least 0, got {weight}")
        self._rendezvous += 1
        part = {"values": {k: float(v) for k, v in values.items()}, "weight": float(weight)}
        self._links.tell(0, Header(Kind.MEET, sequence=self._rendezvous), encode_json(part))
        _, payload = self._links.await_control(Kind.MET)
        result = decode_json(payload)
        if "error" in result:
            raise self._alike(ConfigError(result["error"]), result["first"])
        mean: dict[str, float] = result["mean"]
        return mean

    def barrier(self) -> None:
        """Waits until all workers whose main is still running have come here."""
        self.mean({})

    def server_stats(self) -> list[dict[str, Any]]:
        """The counters of each server: updates, pushes, staleness_max, bytes, balance, ..."""
        answers = self._links.ask_all(Header(Kind.STATS), Kind.STATS_ARE)
        return [decode_json(payload) for _, payload in answers]

    def finish(self) -> None:
        """Leaves and tells every server that this worker's main has returned."""
        self.leave()
        self._links.tell_all(Header(Kind.FINISH))

    def _alike(self, error: PsgradError, first: int) -> PsgradError:
        """Marks an error that several workers raise alike: the ``first`` of them reports it."""
        error.spokesman = self.rank == first
        return error

    @property
    def _registered(self) -> Registered:
        if self._state is None:
            raise LayoutError("call worker.register(arrays) first: there are no parameters yet")
        return self._state

    def _share(self, layout: Layout, handle: str | None) -> WorkerMemory:
        """Memory for the flat vectors: shared with the servers of this node, as far as may be."""
        offer = Offer(layout, self._options, self._roles, self._transport.rank, handle)
        record = encode_json(offer.record())
        for server in offer.servers:
            self._links.tell(server, Header(Kind.SHARE), record)
        accepted = []
        for _ in offer.servers:
            answer = decode_json(self._links.await_control(Kind.SHARED)[1])
            if answer["error"] is None:
                accepted.append(answer["server"])
            else:
                offer.problem = answer["error"]
        groups = [s.options.members for s in layout.segments]
        trains_all = all(group is None or self.rank in group for group in groups)
        memory = offer.settle(accepted, trains_all)
        if self._options.shared_memory == "on" and (offer.problem or not offer.servers):
            reason = offer.problem or f"no server is on {self._transport.host}"
            raise ConfigError(f"shared_memory is on, but {reason}; use auto or off")
        if offer.problem:
            self.notice = f"no shared memory: {offer.problem}"
        return memory

    def _make_encoder(self, state: Registered) -> PushEncoder | None:
        compression = self._options.compression
        if compression.push is None:
            return None
        return PushEncoder(
            compression,
            compression.push,
            state.layout,
            state.trained,
            self._options.seed,
            self.rank,
            self._transport.now,
            self._recorder,
        )

    def _push(self, kind: Kind, grads: Mapping[str, ArrayLike] | None, weight: float) -> None:
        state, encoder = self._registered, self._encoder
        if self._left:
            raise ProtocolError(f"worker {self.rank} has left and cannot push")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight must be finite and at least 0, got {weight}")
        if grads is not None:
            state.set_grads(grads)
        if weight > 0 and not state.guard.settle(state.memory.grads):
            weight = 0.0
        self.clock += 1
        if encoder is not None and weight > 0:
            encoder.begin(self.clock, self.learning_rate, state.memory.grads)
        takes = state.memory.takes
        for chunk in state.trained:
            if weight == 0:
                self._send_chunk(kind, chunk)
                continue
            grad = state.grads_of(chunk)
            payload = None
            if encoder is not None:
                payload = encoder.encode(chunk, grad, self._links.link_rate)
            if payload is None and kind is Kind.STEP and state.owner[chunk.index] in takes:
                self._send_chunk(kind, chunk, None, weight, Flag.SHARED)
                self._links.wire_nbytes += chunk.nbytes
            elif payload is None:
                self._send_chunk(kind, chunk, grad, weight)
            else:
                self._send_chunk(kind, chunk, payload, weight, Flag.ENCODED)
        self._weight = weight or self._weight
        self._next_rate = NO_RATE

    def _flush_residual(self, state: Registered, encoder: PushEncoder) -> None:
        """Pushes what was never sent, so that leaving loses nothing."""
        kept = {chunk.index: encoder.kept(chunk) for chunk in state.trained}
        if all(residual is None for residual in kept.values()):
            return
        self.clock += 1
        for chunk in state.trained:
            residual = kept[chunk.index]
            if residual is None:
                self._send_chunk(Kind.PUSH, chunk, flags=Flag.QUIET)
                continue
            grad = state.grads_of(chunk)
            np.copyto(grad, residual)
            residual.fill(0.0)
            self._send_chunk(Kind.PUSH, chunk, grad, self._weight, Flag.QUIET)
        self._transport.flush()

    def _send_chunk(
        self,
        kind: Kind,
        chunk: Chunk,
        payload: Buffer | None = None,
        weight: float = 0.0,
        flags: int = 0,
    ) -> None:
        state = self._registered
        header = Header(
            kind,
            layout=state.layout.digest,
            segment=chunk.segment,
            chunk=chunk.index,
            clock=self.clock,
            weight=weight,
            rate=self._next_rate,
            flags=flags,
        )
        if flags & Flag.QUIET:
            self._links.tell(state.owner[chunk.index], header, payload)
        else:
            self._links.request(state.owner[chunk.index], header, payload)
