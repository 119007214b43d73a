"""Local updates: a worker takes some steps by itself, then meets the others at the servers.

::

    averaging   H local steps -> push x~ - x as one gradient -> x <- x~, pulled
    elastic     H local steps -> pull x~ -> x <- x - a (x - x~), push: x~ <- x~ + a (x - x~)

x is the worker's own copy of the parameters and x~ what the servers hold. **Averaging** is local
SGD (Stich, ICLR 2019; McMahan et al., AISTATS 2017): with ``SGD(1.0)`` on the servers, in sync
mode, x~ becomes the mean of the copies, weighted by samples. Momentum on the servers makes it slow
momentum (SlowMo, Wang et al., ICLR 2020; DiLoCo, Douillard et al. 2023). SlowMo divides the
difference by the local rate and multiplies by it afterwards, which matters only where that rate
changes; it is not done here. **Elastic** averaging is asynchronous EASGD (Zhang, Choromanska,
LeCun, NeurIPS 2015, algorithm 1): copies stay apart, tied to the centre x~ by a spring.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from psgrad import stored
from psgrad.arrays import Arrays
from psgrad.errors import CheckpointError, ConfigError, shown
from psgrad.guard import StepGuard
from psgrad.layout import ITEMSIZE, Float32, Layout, SegmentOptions
from psgrad.optimizers import F4, Optimizer
from psgrad.options import Options
from psgrad.outer import check_elastic, check_numbers
from psgrad.schedules import Constant, Schedule
from psgrad.update import Hyperparameters, Updater
from psgrad.worker import Worker


class LocalSteps:
    """Steps of one worker on a copy of the parameters; every ``steps``-th one meets the others.

    ``params`` is that copy and ``grads`` the worker's gradients, both as named views; a script
    fills ``grads`` and calls ``step``. ``optimizer`` is the local one, with slots of this worker
    that live as long as it does; ``schedule`` counts local steps. The servers' optimizer, that of
    ``psgrad.run``, is the outer one: ``SGD(1.0)`` for plain averaging.

    ``elastic`` above 0 is the a of elastic averaging. It needs ssp or async mode and ``SGD(1.0)``
    on the servers. ``clip_norm`` bounds each local gradient (that of ``psgrad.run`` would bound the
    difference), ``segments`` gives parameters their own scale and decay in local steps; members and
    buffers are those of the run. A worker needs memory for one more vector of parameters and for
    the slots.

    Raises ``ConfigError`` for values that cannot be. While it is used, leave ``push``, ``pull`` and
    ``step`` of the worker alone.
    """

    def __init__(
        self,
        worker: Worker,
        optimizer: Optimizer,
        steps: int,
        *,
        schedule: Schedule | None = None,
        segments: Sequence[SegmentOptions] = (),
        clip_norm: float | None = None,
        elastic: float = 0.0,
    ) -> None:
        check_numbers(steps, elastic)
        if elastic:
            _check_servers(worker._options)
        self._worker = worker
        self._optimizer = optimizer
        self._steps = steps
        self._schedule = Constant() if schedule is None else schedule
        self._elastic = elastic
        self._updater = Updater.of(optimizer)
        layout, rank = worker.layout, worker.rank
        # As wholes: thousands of small arrays would cost a call each.
        self._pulled = _flat(worker.params, layout)
        self._grads = _flat(worker.grads, layout)
        self._copy = self._pulled.copy()
        self._slots = optimizer.init(layout.size)
        self._parts = tuple(_parts(layout, rank, segments, optimizer, self._slots))
        self._others = [t.name for t in layout.tensors if not _trains(rank, layout, t.segment)]
        trained = [s for s in layout.segments if _trains(rank, layout, s.index)]
        self._guard = StepGuard(layout, trained, clip_norm)
        self._applied = 0  # updates that the slots have had
        self._pending = 0  # local steps since the last exchange
        self._weight = 0.0  # samples in those of them that were applied
        self.params = Arrays(layout.views(self._copy))
        """The worker's own copy of the parameters."""
        self.count = 0
        """How many local steps there were."""

    @property
    def grads(self) -> Arrays:
        """The gradients: the worker's own."""
        return self._worker.grads

    @property
    def learning_rate(self) -> float:
        """The rate of the next local step, before segment scales."""
        return self._optimizer.learning_rate * self._schedule.factor(self.count)

    @property
    def skipped(self) -> int:
        """How many local gradients and differences were not finite and were not applied."""
        return self._guard.skipped + self._worker.skipped

    def step(self, weight: float = 1.0) -> None:
        """Applies ``grads``, the gradient of the mean loss over ``weight`` samples, to ``params``.

        The ``steps``-th call since the last exchange ends with one. A gradient with NaN or infinity
        is not applied, nor is one of weight 0; both count as steps. Raises ``NonFiniteError`` after
        10 gradients in a row that are not finite.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight must be finite and at least 0, got {weight}")
        if weight > 0 and self._guard.settle(self._grads):
            self._descend()
            self._weight += weight
        self.count += 1
        self._pending += 1
        if self._pending == self._steps:
            self.exchange()

    def exchange(self) -> None:
        """Pushes what the steps since the last exchange came to, as one step of all their samples.

        Without such steps it does nothing: call it before the worker leaves. When no step was
        applied the push is empty. A difference that is not finite is not applied; the worker then
        begins afresh, with the servers' parameters and new slots.
        """
        if not self._pending:
            return
        weight, self._pending, self._weight = self._weight, 0, 0.0
        skipped = self._worker.skipped
        if self._elastic:
            self._pull_together(weight)
        else:
            self._average(weight)
        if self._worker.skipped > skipped:
            self._begin_afresh()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs of it, behind the exchange that is under way.

        A copy: the checkpoint may be made when the next local steps have changed the slots.
        """
        copy = {"copy": self._copy.copy()} if self._elastic else {}  # else what the servers have
        return {
            "slots": {name: slot.copy() for name, slot in self._slots.items()},
            "applied": self._applied,
            "count": self.count,
            "guard": self._guard.state_dict(),
            **copy,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of ``state_dict``; with new slots where those are not finite.

        Raises ``CheckpointError`` for a state of other local steps.
        """
        what = "local steps"
        given = stored.mapping(stored.field(state, "slots", what), f"slots of {what}")
        slots: dict[str, Any] = {name: given.get(name) for name in self._slots}
        copy: Any = state.get("copy") if self._elastic else None
        for name, array in {**slots, "copy": copy}.items():
            fits = isinstance(array, np.ndarray) and array.dtype == np.float32
            if array is not None and not (fits and array.shape == self._copy.shape):
                raise CheckpointError(
                    f"{name} of {what} must be float32[{self._copy.size}], got {shown(array)}; "
                    "resume with the optimizer of the saved run"
                )
        applied = stored.count(state, "applied", what)
        count = stored.count(state, "count", what)
        self._guard.load_state_dict(stored.field(state, "guard", what))
        self.count = count
        if all(slot is not None and np.isfinite(slot).all() for slot in slots.values()):
            self._applied = applied
            for name, mine in self._slots.items():
                np.copyto(mine, slots[name])
        if copy is not None:
            np.copyto(self._copy, copy)

    def _descend(self) -> None:
        """One update of the copy from the gradient."""
        rate = self.learning_rate
        self._applied += 1
        # A copy that overflows is told by its difference.
        with np.errstate(over="ignore", invalid="ignore"):
            for part in self._parts:
                params, grad = self._copy[part.where], self._grads[part.where]
                if part.buffer:
                    np.copyto(params, grad)
                    continue
                hyper = Hyperparameters(self._applied, rate * part.scale, part.decay)
                self._updater.step(params, part.slots, [grad], [1.0], hyper)

    def _average(self, weight: float) -> None:
        if weight > 0:
            self._fill_differences()
        self._worker.step(weight=weight)
        if self._others:
            self._worker.pull(self._others)
        np.copyto(self._copy, self._pulled)

    def _pull_together(self, weight: float) -> None:
        self._worker.pull()
        if weight > 0:
            self._fill_differences()
            with np.errstate(over="ignore", invalid="ignore"):
                for part in self._parts:
                    if not part.buffer:
                        self._grads[part.where] *= np.float32(self._elastic)
                        self._copy[part.where] += self._grads[part.where]
        for name in self._others:
            self.params[name] = self._worker.params[name]
        self._worker.push(weight=weight)

    def _fill_differences(self) -> None:
        """grads <- x~ - x; of a buffer its values, which is what servers average."""
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(self._pulled, self._copy, out=self._grads)
        for part in self._parts:
            if part.buffer:
                np.copyto(self._grads[part.where], self._copy[part.where])

    def _begin_afresh(self) -> None:
        np.copyto(self._copy, self._pulled)
        self._applied = 0
        for part in self._parts:
            for name, slot in self._optimizer.init(part.size).items():
                np.copyto(part.slots[name], slot)


@dataclass(frozen=True)
class _Part:
    """Elements ``where`` of the flat vector, which this worker trains with one set of options."""

    where: slice
    scale: float
    decay: float
    buffer: bool
    slots: Mapping[str, F4]

    @property
    def size(self) -> int:
        return int(self.where.stop - self.where.start)


def _flat(arrays: Arrays, layout: Layout) -> Float32:
    """The vector [n] that all views of ``arrays`` lie in, as ``layout`` says."""
    first = arrays[layout.tensors[0].name]
    flat: Float32 = as_strided(first, (layout.size,), (ITEMSIZE,))
    views = layout.views(flat)
    assert all(views[name].ctypes.data == arrays[name].ctypes.data for name in arrays)
    return flat


def _parts(
    layout: Layout,
    rank: int,
    segments: Sequence[SegmentOptions],
    optimizer: Optimizer,
    slots: Mapping[str, F4],
) -> Iterator[_Part]:
    """The parts that worker ``rank`` trains; neighbours with the same options are one."""
    default = SegmentOptions()
    start = 0
    for i, tensor in enumerate(layout.tensors):
        chosen = _options_of(tensor.name, segments, default)
        following = layout.tensors[i + 1] if i + 1 < len(layout.tensors) else None
        if (
            following is not None
            and following.segment == tensor.segment
            and _options_of(following.name, segments, default) == chosen
        ):
            continue
        where, start = slice(start, tensor.stop), tensor.stop
        if _trains(rank, layout, tensor.segment):
            decay = chosen.weight_decay
            yield _Part(
                where,
                chosen.learning_rate_scale,
                optimizer.weight_decay if decay is None else decay,
                layout.segments[tensor.segment].options.buffer,
                {name: slot[where] for name, slot in slots.items()},
            )


def _options_of(
    name: str, segments: Sequence[SegmentOptions], default: SegmentOptions
) -> SegmentOptions:
    return next((o for o in segments if fnmatchcase(name, o.match)), default)


def _trains(rank: int, layout: Layout, segment: int) -> bool:
    members = layout.segments[segment].options.members
    return members is None or rank in members


def _check_servers(options: Options) -> None:
    """Whether the servers of a script's run leave elastic pushes as they are."""
    check_elastic(options.staleness, options.optimizer, options.compression.feedback)
    if not isinstance(options.schedule, Constant):
        raise ConfigError(
            f"elastic needs servers without a schedule, got {options.schedule}; give it to "
            "LocalSteps"
        )
    if options.clip_norm is not None:
        raise ConfigError(
            f"elastic needs pushes that are not clipped, got clip_norm {options.clip_norm} in run; "
            "give it to LocalSteps"
        )
    for segment in options.segments:
        if segment.learning_rate_scale != 1 or segment.weight_decay:
            raise ConfigError(
                f"elastic needs servers without scale and decay of segments, got "
                f"{segment.match!r}; give it to LocalSteps"
            )
