"""How a worker joins: it announces its layout, shares memory, and sends or gets first values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from psgrad import control
from psgrad.control import Past
from psgrad.errors import ConfigError, LayoutError, PsgradError
from psgrad.exchange import Exchange
from psgrad.layout import Layout
from psgrad.links import ServerLinks
from psgrad.marking import Position
from psgrad.messages import NO_RATE, Flag, Header, Kind, Verdict, encode_json
from psgrad.options import Options
from psgrad.push_encoder import PushEncoder
from psgrad.record import Recorder
from psgrad.registered import Registered
from psgrad.resuming import Resuming
from psgrad.roles import Roles
from psgrad.seats import Seat
from psgrad.sharing import Offer, WorkerMemory
from psgrad.transport import Transport


class Joining:
    """A worker's way in. ``notice`` is what the servers, or the node, have to say of it."""

    def __init__(
        self,
        transport: Transport,
        roles: Roles,
        options: Options,
        links: ServerLinks,
        recorder: Recorder | None,
        resuming: Resuming | None,
        seat: Seat,
    ) -> None:
        self.notice = ""
        self.past = Past()
        """Of one that comes in later: what it has missed."""
        self._transport = transport
        self._roles = roles
        self._options = options
        self._links = links
        self._recorder = recorder
        self._resuming = resuming
        self._worker, self._incarnation = seat

    def join(self, arrays: Mapping[str, Any]) -> Exchange:
        """Raises ``LayoutError`` on all workers where one differs, naming it; on one that comes in
        later, on that one alone."""
        try:
            layout = Layout.of(arrays, self._options.segments)
            record: dict[str, Any] = {"layout": asdict(layout)}
        except (ConfigError, LayoutError) as problem:
            record = {"problem": str(problem)}
            if self._incarnation:
                raise
        handle, mine, clock = None, set(), 0
        tell = self._tell_coordinator if self._incarnation else self._links.tell_all
        tell(Header(Kind.REGISTER), encode_json(record))
        for _ in self._roles.server_ranks:
            header, payload = self._links.await_control(Kind.REGISTERED)
            answer = control.fields(
                payload,
                Kind.REGISTERED,
                first=(int,),
                error=control.TEXT,
                notice=(str,),
                server=(int,),
                params=control.TEXT,
            )
            if header.verdict is Verdict.REFUSED and self._incarnation:
                raise LayoutError(answer["error"] or "")
            if header.verdict is Verdict.REFUSED:
                raise alike(LayoutError(answer["error"] or ""), answer["first"], self._worker)
            if answer["first"] == self._worker:
                mine.add(answer["server"])
            if self._roles.same_node(answer["server"], self._transport.rank):
                handle = answer["params"] or handle
            if self._incarnation and answer["server"] == 0:
                self.past, clock = control.past(payload), header.clock
        self.notice = answer["notice"]
        memory = self._share(layout, handle)
        state = Registered.of(layout, self._options, self._roles.servers, self._worker, memory)
        exchange = Exchange(self._transport, self._links, state, self._encoder(state))
        self._links.receive_params_into(state.params_of, state.take_shared)
        if self._incarnation:
            exchange.go_to(Position(clock, 1.0, NO_RATE))
        elif self._resuming is not None:
            self._resume(exchange, self._resuming)
            return exchange
        initial = state.flattened(arrays) if mine else None
        for chunk in state.chunks:
            if initial is not None and state.owner[chunk.index] in mine:
                exchange.send(Kind.INIT, chunk, initial[chunk.start : chunk.stop])

        def give(index: int) -> None:
            chunk = state.chunks[index]
            values = state.flattened(arrays)[chunk.start : chunk.stop]
            exchange.send(Kind.INIT, chunk, values, flags=Flag.QUIET)

        self._links.give_first_values(give)
        self._links.await_answers()
        return exchange

    def _tell_coordinator(self, header: Header, payload: bytes) -> None:
        """The others hear of this worker from the coordinator, when it is admitted."""
        self._links.tell(0, header, payload)

    def _resume(self, exchange: Exchange, resuming: Resuming) -> None:
        """Goes on where a checkpoint was made: the servers have read their part of it."""
        record = resuming.record_of(self._worker)
        weight, rate = record.get("weight", 1.0), record.get("rate", NO_RATE)
        exchange.go_to(Position(resuming.clock_of(self._worker), float(weight), float(rate)))
        exchange.marking.load(resuming, self._worker)

    def _share(self, layout: Layout, handle: str | None) -> WorkerMemory:
        """Memory for the flat vectors: shared with the servers of this node, as far as may be."""
        offer = Offer(layout, self._options, self._roles, self._transport.rank, handle)
        record = encode_json(offer.record())
        for server in offer.servers:
            self._links.tell(server, Header(Kind.SHARE), record)
        accepted = []
        for _ in offer.servers:
            _, payload = self._links.await_control(Kind.SHARED)
            answer = control.fields(payload, Kind.SHARED, server=(int,), error=control.TEXT)
            if answer["error"] is None:
                accepted.append(answer["server"])
            else:
                offer.problem = answer["error"]
        groups = [s.options.members for s in layout.segments]
        trains_all = all(group is None or self._worker in group for group in groups)
        memory = offer.settle(accepted, trains_all)
        if self._options.shared_memory == "on" and (offer.problem or not offer.servers):
            reason = offer.problem or f"no server is on {self._transport.host}"
            raise ConfigError(f"shared_memory is on, but {reason}; use auto or off")
        if offer.problem:
            self.notice = f"no shared memory: {offer.problem}"
        return memory

    def _encoder(self, state: Registered) -> PushEncoder | None:
        compression = self._options.compression
        if compression.push is None:
            return None
        return PushEncoder(
            compression,
            compression.push,
            state.layout,
            state.trained,
            self._options.seed,
            self._worker,
            self._transport.now,
            self._recorder,
        )


def alike(error: PsgradError, first: int, worker: int) -> PsgradError:
    """Marks an error that several workers raise alike: the ``first`` of them reports it."""
    error.spokesman = worker == first
    return error
