"""What pushes do to a chunk: the learning rate that they set, and the update that they make."""

from __future__ import annotations

from collections.abc import Sequence

from psgrad.aggregator import Aggregator
from psgrad.chunk_state import ChunkState, Counters, Push, Rules
from psgrad.errors import ConfigError
from psgrad.messages import NO_RATE
from psgrad.update import Gradient, Hyperparameters, Updater


class Applier:
    """The updates of one shard, counted in ``counters``."""

    def __init__(self, rules: Rules, updater: Updater, counters: Counters) -> None:
        self._rules = rules
        self._updater = updater
        self._counters = counters
        robust = rules.aggregate
        self._robust = None if robust is None else Aggregator(robust, updater.crew)

    def set_rate(self, state: ChunkState, pushes: Sequence[Push]) -> None:
        """Takes over the base learning rate that pushes ask for; raises ``ConfigError`` where they
        differ."""
        asked = {p.header.worker: p.header.rate for p in pushes if p.header.rate != NO_RATE}
        if not asked:
            return
        if len(set(asked.values())) > 1:
            raise ConfigError(
                f"workers set different learning rates at clock {pushes[0].header.clock}: "
                + ", ".join(f"worker {worker} {rate:g}" for worker, rate in asked.items())
                + "; in sync mode all must set the same"
            )
        for rate in asked.values():
            state.rate = rate

    def apply(self, state: ChunkState, pushes: Sequence[Push], position: float) -> None:
        """One update from the pushes that carry something, in worker order."""
        self._counters.pushes += len(pushes)
        arrays: list[Gradient] = [p.grad for p in pushes if p.grad is not None]
        weights = [p.header.weight for p in pushes if p.grad is not None]
        self._counters.skipped += len(pushes) - len(arrays)
        if not arrays:
            return
        if self._robust is not None:
            clock = pushes[0].header.clock
            arrays = [self._robust.combine(arrays, state.chunk.size, clock)]
            weights = [1.0]
        if state.options.buffer:
            share = 1.0 if self._rules.bound == 0 else 1 / len(state.clocks)
            self._updater.average(state.params, arrays, weights, share)
        else:
            if state.estimate is not None:
                self._track(state, arrays, pushes)
                arrays, weights = [state.estimate], [1.0]
            self._updater.step(
                state.params, state.slots, arrays, weights, self._hyper(state, position)
            )
        state.version += 1
        self._counters.updates += 1

    def _track(self, state: ChunkState, grads: Sequence[Gradient], pushes: Sequence[Push]) -> None:
        assert state.estimate is not None, "the caller has looked"
        if len(pushes) < state.members:
            raise ConfigError(
                f"feedback ef21 needs all {state.members} workers in every round, round "
                f"{pushes[0].header.clock} has {len(pushes)}: a worker has left; give all workers "
                "the same number of steps, or use feedback ef"
            )
        self._updater.track(state.estimate, grads, state.members)

    def _hyper(self, state: ChunkState, position: float) -> Hyperparameters:
        options = state.options
        decay = options.weight_decay
        return Hyperparameters(
            step=state.version + 1,
            rate=state.rate * self._rules.schedule.factor(position) * options.learning_rate_scale,
            decay=self._rules.optimizer.weight_decay if decay is None else decay,
        )
