"""A worker's data and its gradients, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from psgrad import data
from psgrad.arrays import Arrays
from psgrad.config import Config
from psgrad.data import Dataset, IndexArray
from psgrad.errors import DataError
from psgrad.kernels import Kernels
from psgrad.kernels.precision import with_precision
from psgrad.loss_scale import LossScale
from psgrad.models import Model
from psgrad.models.hooks import Hooks, nothing
from psgrad.roles import Roles

EVALUATION_BATCH: Final = 1024  # labels


@dataclass(frozen=True)
class WorkerData:
    """The samples that workers share, and the test samples that worker 0 evaluates on."""

    dataset: Dataset
    training: IndexArray
    test: IndexArray


def load_data(config: Config, roles: Roles, rank: int) -> WorkerData | None:
    """The data of a worker, or of a spare, on ``rank``; None on a server."""
    if roles.is_server(rank):
        return None
    dataset = data.load(config.dataset, config.model.value.window)
    training, test = data.split(dataset, config.dataset.test_fraction, config.seed)
    if not len(training):
        raise DataError(f"{config.dataset.name}: no samples are left to train on")
    return WorkerData(dataset, training, test)


class Copy(Protocol):
    """Whose parameters a gradient is of, and where it goes: a worker, or its local steps."""

    @property
    def params(self) -> Arrays:
        """The parameters, in the host's memory."""

    @property
    def grads(self) -> Arrays:
        """The gradients, in the host's memory."""


class Compute:
    """Gradients on a device, from and into the host's arrays of ``copy``.

    On the CPU the model works on those arrays themselves; on a GPU, on twins of them there.
    Gradients are computed with ``precision``, of a loss times ``scale``, and are divided by it
    again; evaluations are in float32, as the parameters are.
    """

    def __init__(
        self,
        model: Model,
        copy: Copy,
        kernels: Kernels,
        precision: str = "float32",
        scale: LossScale | None = None,
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._reduced = with_precision(kernels, precision)
        self._scale = scale
        self._on_host = kernels.device == "cpu"
        self._copy = copy
        self._params = self._device_twin(copy.params)
        self._grads = self._device_twin(copy.grads)

    def gradient(
        self, dataset: Dataset, micro_batches: list[IndexArray], hooks: Hooks | None = None
    ) -> tuple[float, float, int]:
        """Fills ``copy.grads`` with the gradient of the mean loss over all micro-batches.

        Returns that mean loss, the part of the labels that was predicted and the number of samples.
        On a GPU ``hooks`` are told of all layers at once, before parameters go there.
        """
        hooks = hooks or Hooks()
        if not self._on_host:
            hooks.needs(tuple(self._params))
            hooks = Hooks()
        factor = 1.0 if self._scale is None else self._scale.value

        def done(names: Sequence[str]) -> None:
            """The gradients ``names`` are final, but for the factor."""
            if factor != 1:
                for name in names:
                    grad = self._grads[name]
                    grad *= 1 / factor
            hooks.done(names)

        params = self._on_device(self._copy.params)
        samples = sum(len(indices) for indices in micro_batches)
        loss, accuracy = 0.0, 0.0
        for i, indices in enumerate(micro_batches):
            share = len(indices) / samples
            x, y = (self._kernels.asarray(part) for part in dataset.batch(indices))
            told = Hooks(
                hooks.needs if i == 0 else nothing,
                done if i == len(micro_batches) - 1 else nothing,
            )
            one_loss, one_correct = self._model.loss_and_grad(
                params, x, y, self._grads, self._reduced,
                scale=share * factor, accumulate=i > 0, hooks=told,
            )  # fmt: skip
            loss += share * one_loss
            accuracy += share * one_correct / y.size
        if not self._on_host:
            for name, grad in self._grads.items():
                self._kernels.copy_to_host(grad, self._copy.grads[name])
        return loss, accuracy, samples

    def evaluate(
        self, arrays: Arrays, dataset: Dataset, indices: IndexArray
    ) -> tuple[float, float]:
        """Mean loss and accuracy on the samples ``indices`` of the parameters ``arrays``.

        NaN for no samples.
        """
        params = self._on_device(arrays)
        loss, correct, labels = 0.0, 0, 0
        size = max(1, EVALUATION_BATCH // max(1, self._model.window))
        for start in range(0, len(indices), size):
            batch = dataset.batch(indices[start : start + size])
            x, y = (self._kernels.asarray(part) for part in batch)
            part_loss, part_correct = self._model.evaluate(params, x, y, self._kernels)
            loss, correct = loss + part_loss, correct + part_correct
            labels += y.size
        return (loss / labels, correct / labels) if labels else (float("nan"), float("nan"))

    def _on_device(self, arrays: Arrays) -> Mapping[str, Any]:
        """The parameters ``arrays`` where the model can use them, until the next such call."""
        if self._on_host:
            return arrays
        for name, param in self._params.items():
            self._kernels.copy_to_device(arrays[name], param)
        return self._params

    def _device_twin(self, arrays: Arrays) -> Mapping[str, Any]:
        if self._on_host:
            return arrays
        return {name: self._kernels.asarray(array) for name, array in arrays.items()}
