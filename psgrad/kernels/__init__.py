"""The element-wise work of the models, on the CPU or on a GPU, behind one contract.

``load`` returns ``kernels.cpu`` or ``kernels.cuda``: two modules with the functions of `Kernels`.
The CPU one is plain NumPy and is the specification; the CUDA one does each function in one fused
launch and agrees within rounding (a relative 1e-5 of the largest value in float32, 1e-12 in
float64). Matrix products are those of BLAS and cuBLAS.

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

PRECISIONS: Final = ("float32", "tf32", "bfloat16", "float16")
"""What the factors of matrix products may be; what else there is stays float32."""

LAYER_NORM_EPS: Final = 1e-5
"""Added to a variance, so that a row of equal values has no infinite inverse."""


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

    def matmul(
        self, a: Array, b: Array, out: Array | None = None, precision: str = "float32"
    ) -> Array:
        """a[..., m, k] b[..., k, n], into ``out`` where that is given. a and b may be views.

        ``precision``, one of `PRECISIONS`, is that of the factors (`kernels.precision`); with
        another one than float32 they must be float32 arrays. The result is one in any case.
        """

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

    def embed(self, ids: Array, tokens: Array, positions: Array) -> Array:
        """h[b * t, n] = tokens[ids] + positions, of ids[b, t], tokens[v, n], positions[t, n].

        ids are integers in [0, v), which the data set has checked.
        """

    def embed_backward(
        self, grad: Array, ids: Array, tokens_grad: Array, positions_grad: Array
    ) -> None:
        """Adds each row of grad[b * t, n] to the rows of both gradients that it came from.

        They are tokens_grad[v, n] and positions_grad[t, n]. Sums are in an order that depends on
        ids alone, so they repeat bit for bit.
        """

    def layer_norm(self, x: Array, gain: Array, bias: Array) -> tuple[Array, Array, Array]:
        """(y, centred, inverse): y[m, n] = centred * gain + bias. Leaves x as it is.

        inverse[m, 1] = 1 / sqrt(variance + `LAYER_NORM_EPS`) of each row, with the mean of squared
        differences as variance; centred[m, n] = (x - mean) * inverse. Hand both as they are to
        `layer_norm_backward`.
        """

    def layer_norm_backward(
        self,
        grad: Array,
        centred: Array,
        inverse: Array,
        gain: Array,
        gain_grad: Array,
        bias_grad: Array,
    ) -> None:
        """grad[m, n] from d loss/d y to d loss/d x, in place; adds to gain_grad[n], bias_grad[n].

        With g = grad * gain and means over a row: inverse (g - mean(g) - centred mean(g centred)).
        """

    def causal_softmax(self, scores: Array, scale: float) -> None:
        """scores[..., t, t] becomes p: row i is softmax(scale * scores) over columns 0..i, then 0.

        Each row is shifted by its maximum first.
        """

    def causal_softmax_backward(self, grad: Array, p: Array, scale: float) -> None:
        """grad[..., t, t] from d loss/d p to d loss/d scores, in place; 0 above the diagonal.

        With the sum over a row: scale p (grad - sum(grad p)).
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
