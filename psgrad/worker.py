"""The worker's program: the journey of a gradient, from top to bottom.

::

    register   worker 0's initial values go out, everyone's parameters come in
    step       check -> (clip) -> push every chunk -> pull what is due
    leave      no more pushes: nobody waits for this worker any longer
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from numpy.typing import ArrayLike

from psgrad import control
from psgrad.arrays import Arrays
from psgrad.control import Past, Span
from psgrad.cuts import Markers
from psgrad.errors import ConfigError, LayoutError, Preempted, ProtocolError
from psgrad.exchange import Exchange
from psgrad.halting import Halting
from psgrad.joining import Joining, alike
from psgrad.layout import Layout
from psgrad.leases import BEATS
from psgrad.links import ServerLinks
from psgrad.messages import NO_RATE, Flag, Header, Kind, encode_json
from psgrad.numbering import Numbering
from psgrad.options import Options
from psgrad.preemption import Preemption
from psgrad.record import Recorder
from psgrad.resuming import Resumed, Resuming
from psgrad.roles import Roles
from psgrad.seats import Seat
from psgrad.transport import Transport
from psgrad.watchdog import Watchdog
from psgrad.worker_state import Stateful


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
        resuming: Resuming | None = None,
        preemption: Preemption | None = None,
        watchdog: Watchdog | None = None,
        seat: Seat | None = None,
        numbering: Numbering | None = None,
    ) -> None:
        """``seat`` is which worker this is, None as at the start; ``numbering`` that of its links
        where there were some before."""
        seat = Seat(roles.worker_of(transport.rank)) if seat is None else seat
        self.rank, self.incarnation = seat
        """This worker's index, 0 to size - 1; not the MPI rank. And 0, or, of one that takes the
        place of one that was lost, the number of its admission."""
        self.size = roles.workers
        """How many workers there are."""
        self.node_rank = roles.place_on_node(transport.rank)
        """Its place among the workers of its node, from 0: the number of its GPU, for scripts."""
        self.comm = comm
        """A communicator of the workers only."""
        self.survivors = tuple(range(roles.workers))
        """The workers whose main was running at the last rendezvous, such as ``barrier``."""
        self.lost: dict[int, int] = {}
        """Workers that had died by then, and the clock of the last step that counts of each."""
        self.spans: dict[int, tuple[Span, ...]] = {}
        """Of each worker that was ever lost by then, between which clocks there was one."""
        self.changed = False
        """Whether that was news at the last rendezvous."""
        self.past = Past()
        """Of one that comes in later: at which rendezvous it was not, and what they told."""
        self.notice = ""
        """What the servers had to say of the registration, such as the memory that pulls need."""
        self._transport = transport
        self._roles = roles
        self._options = options
        self._recorder = recorder
        self._resuming = resuming
        self._seat = seat
        self._markers = Markers(
            options.checkpoints.every, options.staleness, resuming.number if resuming else 0
        )
        self._kept: dict[str, Stateful] = {}
        self._links = ServerLinks(
            transport,
            roles,
            run,
            options.room,
            options.compression.pull,
            recorder,
            self._markers,
            seat,
            numbering,
        )
        self._links.preemption, self._links.watchdog = preemption, watchdog
        self._halting = Halting(self._links, self._markers)
        if options.fault_tolerant:
            self._links.beat_s = options.lease / BEATS
        self._exchange: Exchange | None = None
        self._rate = NO_RATE  # what was set before the registration
        self._rendezvous = 0
        self._left = False

    @property
    def is_registered(self) -> bool:
        """Whether ``register`` has been called, and all servers know this worker."""
        return self._exchange is not None

    @property
    def clock(self) -> int:
        """How many steps this worker has pushed."""
        return 0 if self._exchange is None else self._exchange.clock

    @property
    def params(self) -> Arrays:
        """The parameters: named views into the memory that pulls are received into.

        Read-only where a server of this node has them in the same memory, and where pulls are
        differences; copy what you want to change.
        """
        return self._live().state.params

    @property
    def grads(self) -> Arrays:
        """The gradients: named views into the memory that ``step()`` sends without a copy."""
        return self._live().state.grads

    @property
    def layout(self) -> Layout:
        """How the parameters lie in the flat vector."""
        return self._live().state.layout

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
        return 0 if self._exchange is None else self._exchange.state.guard.skipped

    @property
    def codecs_used(self) -> dict[str, int]:
        """How many chunks this worker has encoded with each codec, by name."""
        return {} if self._exchange is None else self._exchange.codecs_used

    @property
    def resumed(self) -> Resumed | None:
        """The checkpoint that this run goes on from; None where it began from the start."""
        return None if self._resuming is None else self._resuming.resumed

    @property
    def stopping(self) -> bool:
        """Whether this run ends behind its next checkpoint: a step to come raises ``Preempted``."""
        return self._markers.stops

    @property
    def stopped(self) -> control.Stopped | None:
        """Why this run was stopped, and what is safe; None as long as it goes on."""
        return self._halting.stopped

    def ask_to_stop(self, reason: str) -> None:
        """Has the whole run stop as a signal would, behind a checkpoint: see ``step``.

        Raises ``ConfigError`` in a run without checkpoints.
        """
        if not self._markers.every:
            raise ConfigError(
                "ask_to_stop() ends a run behind a checkpoint, and this one makes none; give "
                "checkpoint_every"
            )
        self._links.ask_to_stop(f"{reason} at worker {self.rank}")

    def now(self) -> float:
        """Seconds since an arbitrary moment, on the transport's clock."""
        return self._transport.now()

    def sleep(self, seconds: float) -> None:
        """Lets ``seconds`` pass on the transport's clock."""
        self._transport.sleep(seconds)

    def alive(self) -> None:
        """Renews this worker's lease: for computations that take longer than it and ten steps."""
        self._links.tell(0, Header(Kind.ALIVE))
        self._links.drive()

    def register(self, arrays: Mapping[str, Any]) -> Arrays:
        """Announces the parameters and returns them as views that every pull refreshes in place.

        Every worker calls it once, with the same names, shapes and order; float32 only. Worker 0's
        values win (where its main has returned already: those of the first that registers).
        Raises ``LayoutError`` on all workers, naming the one that differs.
        """
        if self._exchange is not None:
            raise LayoutError("register() takes all parameters in one call, it was called twice")
        joining = Joining(
            self._transport,
            self._roles,
            self._options,
            self._links,
            self._recorder,
            self._resuming,
            self._seat,
        )
        self._exchange = joining.join(arrays)
        self._exchange.rate = self._rate
        self.notice, self.past = joining.notice, joining.past
        if self.incarnation:
            self._rendezvous = self.past.meetings
            # It is in no cut of a clock that the others had come to.
            self._markers.last = self.clock if self._options.staleness == 0 else 0
        # Who goes on has what it had: where pulls are encoded, that is not what the servers have.
        # At one clock, this waits for nobody. Elsewhere it may, and what was kept is known.
        marking = self._exchange.marking
        is_new = self._resuming is None or self.incarnation > 0
        marking.paused = self._resuming is None or is_new or not self._resuming.same_number
        self.pull(dense=is_new)
        marking.paused = False
        self._links.give_first_values(None)
        return self.params

    def keep(self, name: str, part: Stateful) -> bool:
        """Has ``part`` go into each checkpoint of this run, and go on from the one it began with.

        Its ``state_dict`` is asked for here and at the start of each step, so it is to say how
        things are when that step is done; it may hold numbers, strings, lists, dicts and NumPy
        arrays, and what it holds must not change until the next step. Call it right
        after ``register``, with the same name in the resumed run: then ``load_state_dict`` takes
        the state over, at once.

        Returns whether it did. It does not where there is no checkpoint, where that has no such
        name, and where the run had another number of workers: see ``resumed`` then.
        """
        marking = self._live().marking
        if name in self._kept:
            raise ConfigError(f"keep() was called twice for {name!r}")
        goes_on = None if self.incarnation else self._resuming
        state = None if goes_on is None else goes_on.kept(self.rank, name)
        if state is not None:
            part.load_state_dict(state)
        self._kept[name] = part
        if marking.wanted:  # a checkpoint may come before the first step
            marking.kept = marking.next = {**marking.kept, name: part.state_dict()}
        return state is not None

    def step(self, grads: Mapping[str, ArrayLike] | None = None, weight: float = 1.0) -> None:
        """Pushes a gradient and pulls what it makes due: ``push`` and ``pull`` in one message.

        ``grads`` is the gradient of the mean loss over ``weight`` samples, copied into ``grads``;
        None sends ``self.grads`` as it is. When it returns, the parameters are fresh: in sync mode
        they hold every worker's gradient of this clock, otherwise they rest on all pushes up to
        clock - s, with the bound s. Segments that other workers train are left to ``pull``.

        A gradient with NaN or infinity is not applied, not even a part of it: the step counts in
        ``skipped`` and moves the clock. Raises ``NonFiniteError`` after 10 of them in a row.

        Raises ``Preempted`` where the run was asked to stop (``psgrad.run``): the step is done,
        and in a checkpoint that is safe.
        """
        exchange = self._begin(grads, weight)
        if exchange.is_open:
            exchange.settle(weight)
        else:
            exchange.check_whole("step()")
            exchange.push(Kind.STEP, weight)
        exchange.wait()
        self._halting.end_if_told(exchange)

    def ready(self, names: str | Iterable[str]) -> None:
        """The gradients ``names`` of the next step are final, and lie in ``grads``.

        The chunks that are complete by that leave as far as their servers' windows have room, while
        the rest is computed; ``step_async`` or ``step`` ends the step, and no update is made of
        them before. Until then, and until ``wait``, they must not be written again.
        """
        self._check_here()
        if not self._live().is_open:
            self._live().mark_if_due()
        self._live().ready((names,) if isinstance(names, str) else names)

    def step_async(self, grads: Mapping[str, ArrayLike] | None = None, weight: float = 1.0) -> None:
        """``step`` without waiting: ``wait`` says when parameters are fresh.

        Until then parameters may change at any time, and ``grads`` must not be written. One step
        may be under way. A part of it may leave only while psgrad is called: ``wait`` before you
        wait for other workers in another way.
        """
        self._begin(grads, weight).settle(weight)

    def wait(self, names: str | Iterable[str] | None = None) -> None:
        """Waits until the parameters ``names`` are as ``step`` would leave them; None: all.

        Those of the first layers come first: a forward pass waits for one layer after the other.
        """
        self._live().wait((names,) if isinstance(names, str) else names)
        if names is None:
            self._halting.end_if_told(self._live())

    def push(self, grads: Mapping[str, ArrayLike] | None = None, weight: float = 1.0) -> None:
        """Pushes a gradient like ``step`` but returns as soon as ``grads`` may be written again."""
        exchange = self._begin(grads, weight)
        exchange.check_whole("push()")
        exchange.state.memory.detach()  # others may close this round and change parameters
        exchange.push(Kind.PUSH, weight)
        self._transport.flush()
        exchange.mark_if_due()
        self._halting.end_if_told(exchange)

    def pull(self, names: str | Iterable[str] | None = None, *, dense: bool = False) -> None:
        """Fetches parameters at this worker's clock: those of ``names``, or all of them.

        Chunks are fetched whole, so neighbours of a named tensor may become fresh too. ``dense``
        brings them as the servers have them, in float32, whatever the pull codec.
        """
        exchange = self._live()
        wanted = exchange.state.touched_by((names,) if isinstance(names, str) else names)
        flags = Flag.DENSE if dense else 0

        def fetch() -> None:
            for chunk in wanted:
                exchange.send(Kind.PULL, chunk, flags=flags)
            exchange.wait()

        exchange.finish()
        exchange.check_whole("pull()")  # early chunks have said what this worker holds
        if self._links.idle:
            self._links.timed(fetch)
        else:
            fetch()

    def set_lr(self, rate: float) -> None:
        """Sets the base learning rate from this worker's next push on, for all workers.

        It takes effect at that clock on every chunk, of every server, that this worker trains; the
        schedule multiplies it. It may be set before ``register``. In sync mode, two workers that
        set different rates at one clock are an error.
        """
        if not (math.isfinite(rate) and rate >= 0):
            raise ConfigError(f"learning rate must be finite and at least 0, got {rate}")
        if self._exchange is None:
            self._rate = float(rate)
        else:
            self._exchange.rate = float(rate)

    def leave(self) -> None:
        """Ends this worker's pushes: rounds close and bounds hold without it. Pulls still work.

        What error feedback has kept back is pushed first, as float32: one more step, which nobody
        waits for; with a robust aggregate it is lost.
        """
        if self._left or self._exchange is None:
            return
        exchange = self._exchange
        self._halting.end_if_told(exchange)
        if exchange.is_open:
            raise ProtocolError(
                f"worker {self.rank} leaves in the middle of a step: ready() was called; end the "
                "step with step()"
            )
        exchange.wait()
        exchange.state.memory.detach()  # rounds close without this worker from now on
        if self._options.robust is None:  # what some have kept is no round of gradients
            exchange.flush_residual()
        said = exchange.marking.last_words(exchange.position)
        exchange.marking.over = True
        self._links.ask_all(Header(Kind.LEAVE, clock=self.clock), Kind.LEFT, said)
        self._left = True

    def mean(self, values: Mapping[str, float], weight: float = 1.0) -> dict[str, float]:
        """The weighted mean of each value over all workers whose main is still running.

        A rendezvous: every such worker must call it, in the same order as other rendezvous, with
        the same names. Computed in float64 in worker order.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight must be finite and at least 0, got {weight}")
        self._check_is_in("mean() or barrier()")
        if self._exchange is not None:
            self._exchange.finish()  # others may wait for what of it has not been sent
        self._halting.end_if_told(self._exchange)
        self._rendezvous += 1
        part = {"values": {k: float(v) for k, v in values.items()}, "weight": float(weight)}
        self._links.tell(0, Header(Kind.MEET, sequence=self._rendezvous), encode_json(part))
        self._links.awaiting = Kind.MET
        while not self._links.has_control:
            if self._exchange is not None:
                self._exchange.mark_if_due()  # who waits for the marker may be who has to come
            self._links.take()
            self._halting.end_if_told(self._exchange)
        header, payload = self._links.await_control(Kind.MET)
        result = control.result(payload)
        if result.error is not None:
            raise alike(ConfigError(result.error), result.first, self.rank)
        if header.sequence != self._rendezvous or result.mean.keys() != values.keys():
            raise ProtocolError(
                f"worker {self.rank} waits for rendezvous {self._rendezvous} of {len(values)} "
                f"values, got {header.sequence} of {len(result.mean)}"
            )
        self.survivors, self.lost = result.running, result.lost
        self.spans, self.changed = result.spans, result.changed
        return result.mean

    def barrier(self) -> None:
        """Waits until all workers whose main is still running have come here."""
        self.mean({})

    def server_stats(self) -> list[dict[str, Any]]:
        """The counters of each server: updates, pushes, staleness_max, bytes, balance, ..."""
        self._check_is_in("server_stats()")
        answers = self._links.ask_all(Header(Kind.STATS), Kind.STATS_ARE)
        return [control.counters(payload) for _, payload in answers]

    def finish(self) -> None:
        """Leaves and tells every server that this worker's main has returned."""
        if self.incarnation and self._exchange is None:
            return  # it never came in
        with suppress(Preempted):  # the session raises it on all ranks
            self.leave()
        if self._options.fault_tolerant:  # a process that is gone may not be heard any more
            self._links.part(self._halting.parting_words)
        else:
            self._links.tell_all(Header(Kind.FINISH), self._halting.parting_words)

    def _check_is_in(self, call: str) -> None:
        if self.incarnation and self._exchange is None:
            raise ProtocolError(
                f"{call} before register(): worker {self.rank} takes the place of one that was "
                "lost, and comes in when it registers"
            )

    def _live(self) -> Exchange:
        if self._exchange is None:
            raise LayoutError("call worker.register(arrays) first: there are no parameters yet")
        return self._exchange

    def _check_here(self) -> None:
        if self._left:
            raise ProtocolError(f"worker {self.rank} has left and cannot push")

    def _begin(self, grads: Mapping[str, ArrayLike] | None, weight: float) -> Exchange:
        """Before a push: checks that it may be, and copies ``grads`` in, where there are any."""
        exchange = self._live()
        self._halting.end_if_told(exchange)
        self._check_here()
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight must be finite and at least 0, got {weight}")
        exchange.mark_if_due()
        if exchange.marking.wanted:
            exchange.marking.next = {k: part.state_dict() for k, part in self._kept.items()}
        if grads is not None:
            if exchange.is_open:
                raise ProtocolError(
                    "step(grads) after ready(): what was ready is on its way; call step() without"
                )
            exchange.finish()
            exchange.state.set_grads(grads)
        return exchange
