"""The element-wise work of the models, on the CPU or on a GPU, behind one contract.

``load`` returns ``kernels.cpu`` or ``kernels.cuda``: two modules with the functions of `Kernels`.
The CPU one is plain NumPy and is the specification; the CUDA one does each function in one fused
launch and agrees within rounding (a relative 1e-5 of the largest value in float32, 1e-12 in
float64). Matrix products are not here: the models call ``xp.matmul``, so BLAS or cuBLAS does them.

Importing this module imports neither CuPy nor NumPy's CPU kernels; ``load`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from psgrad.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = Any
"""A numpy.ndarray or a cupy.ndarray, whichever the kernels in use work on."""

ACTIVATIONS: Final = ("gelu", "relu", "tanh")
"""What a hidden layer may use. The kernels also know "identity", for a layer without one."""

DEVICES: Final = ("auto", "cpu", "gpu")


class Kernels(Protocol):
    """What both devices offer. Arrays are C-contiguous, all of one dtype: float32 or float64.

    Nothing is checked for NaN or infinity: they propagate into losses and gradients, silently, and
    whoever applies a gradient looks at it first. On the GPU work is queued on the current stream
    and errors of a launch may surface later; `copy_to_host` waits for what came before it.
    """

    @property
    def xp(self) -> Any:
        """The array module: numpy or cupy."""

    @property
    def device(self) -> str:
        """ "cpu" or "gpu"."""

    def asarray(self, host: NDArray[Any]) -> Array:
        """``host`` as an array of the device, same dtype and shape; on the CPU not copied."""

    def copy_to_device(self, source: NDArray[Any], out: Array) -> None:
        """Copy a host array into an existing device array of the same shape and dtype.

        A source in pinned memory may still be read after the call: `synchronize` before changing
        it.
        """

    def copy_to_host(self, source: Array, out: NDArray[Any]) -> None:
        """Copy a device array into an existing host array of the same shape and dtype; waits."""

    def synchronize(self) -> None:
        """Return when all work queued so far is done."""

    def bias_activation(self, z: Array, bias: Array, kind: str) -> Array:
        """h[b, n] = act(z + bias), with z[b, n] and bias[n]. Consumes z.

        ``kind`` is one of `ACTIVATIONS` or "identity". For relu, tanh and identity the result is
        written over z and returned; for gelu z becomes z + bias and the result is a new array.
        Hand z and h as they are to `activation_backward`.

        gelu is the tanh form of Hendrycks and Gimpel (2016),
        z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))), not the erf form.

        Raises ConfigError for an unknown kind.
        """

    def activation_backward(self, grad: Array, z: Array, h: Array, kind: str) -> None:
        """grad[b, n] *= act'(z + bias), in place: from d loss/d h to d loss/d z.

        z and h are what `bias_activation` left and returned. The slope of relu at 0 is 0.

        Raises ConfigError for an unknown kind.
        """

    def softmax_cross_entropy(self, logits: Array, labels: Array, scale: float) -> Array:
        """Cross-entropy of softmax(logits[b, c]) against labels[b], and its gradient in place.

        Returns totals[2] in float64, still on the device so that more work can be queued before it
        is read: the loss -log softmax(logits)[label] summed over the rows, and the number of rows
        whose label has the largest logit (the lowest index among equal ones). Overwrites logits
        with scale * (softmax(logits) - onehot(labels)), the gradient of scale times the summed
        loss: scale = 1/b gives the gradient of the mean. Each row is shifted by its maximum first,
        so logits of any finite size neither overflow nor lose the loss.

        labels are integers in [0, c), which the data set has checked.
        """


def gpus() -> tuple[str, ...]:
    """The PCI ids of the GPUs that this process sees, by their numbers there.

    Raises ConfigError with the cure where there is none, or no CuPy. Makes no CUDA context.
    """
    ids: tuple[str, ...] = _load_cuda().pci_ids()
    return ids


def load(device: str, gpu: int | None = None) -> Kernels:
    """The kernels for ``device``: "cpu", "gpu", or "auto".

    "auto" takes the GPU when CuPy can be imported and sees a device, and the CPU otherwise.
    "gpu" raises ConfigError with the cure when there is none; an unknown name does, too. ``gpu`` is
    the number of the GPU to work on, of those that this process sees. Without it no CUDA context is
    created here, so a process may still choose its device afterwards.
    """
    if device not in DEVICES:
        raise ConfigError(unknown_name("device", device, DEVICES))
    from psgrad.kernels import cpu

    if device == "cpu":
        return cpu
    try:
        cuda = _load_cuda()
    except ConfigError:
        if device == "gpu":
            raise
        return cpu
    if gpu is not None:
        cuda.use(gpu)
    chosen: Kernels = cuda
    return chosen


def _load_cuda() -> Any:
    """kernels.cuda, or ConfigError when CuPy cannot be imported or sees no device."""
    try:
        from psgrad.kernels import cuda
    except ImportError as error:
        # CuPy explains a broken installation over many lines; the first one that says something.
        cause = next((line.strip(" =") for line in str(error).splitlines() if line.strip(" =")), "")
        raise ConfigError(
            f"device 'gpu' needs CuPy, which cannot be imported ({cause}): pip install "
            "'psgrad[cuda13x]' (or cuda12x, as your driver has it), or use device 'cpu'"
        ) from error
    problem = cuda.unavailable()
    if problem:
        raise ConfigError(
            f"device 'gpu' needs a CUDA GPU, found none ({problem}): check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, pip install 'psgrad[cuda12x]' for a driver before CUDA 13, "
            "or use device 'cpu'"
        )
    return cuda
