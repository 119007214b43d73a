// The GPU twin of cpu.py; what each function guarantees is said in __init__.py (Kernels).
//
// Templates hold the code, extern "C" names at the end hold the two dtypes: NAME_f32 and NAME_f64.
// Nothing is included, so that NVRTC needs no header. Arrays are row-major and contiguous; sizes
// are 64-bit. max and min are avoided on values because CUDA's drop NaN where NumPy keeps it.

namespace {

// value(z) is the activation of z = pre-activation; slope(z, h) its derivative there, h = value(z).
// KEEPS_INPUT: the slope needs z, so the forward pass stores it and puts h elsewhere.

struct Identity {
    static constexpr bool KEEPS_INPUT = false;
    template <typename T> static __device__ T value(T z) { return z; }
};

struct Relu {
    static constexpr bool KEEPS_INPUT = false;
    template <typename T> static __device__ T value(T z) { return z < T(0) ? T(0) : z; }
    template <typename T> static __device__ T slope(T, T h) { return h > T(0) ? T(1) : T(0); }
};

struct Tanh {
    static constexpr bool KEEPS_INPUT = false;
    template <typename T> static __device__ T value(T z) { return tanh(z); }
    template <typename T> static __device__ T slope(T, T h) { return T(1) - h * h; }
};

struct Gelu {
    static constexpr bool KEEPS_INPUT = true;
    static constexpr double ROOT = 0.79788456080286535588;  // sqrt(2 / pi)
    static constexpr double CUBIC = 0.044715;
    static constexpr double LIMIT = 10.0;  // beyond it the tanh is exactly 1; z^3 cannot overflow

    template <typename T> static __device__ T clip(T z) {
        return z > T(LIMIT) ? T(LIMIT) : (z < T(-LIMIT) ? T(-LIMIT) : z);
    }
    template <typename T> static __device__ T gate(T c) {
        return tanh(T(ROOT) * c * (T(1) + T(CUBIC) * c * c));
    }
    template <typename T> static __device__ T value(T z) {
        return T(0.5) * z * (T(1) + gate(clip(z)));
    }
    template <typename T> static __device__ T slope(T z, T) {
        const T c = clip(z);
        const T t = gate(c);
        const T inner = T(ROOT) * c * (T(1) + T(3 * CUBIC) * c * c);
        return T(0.5) * (T(1) + t + inner * (T(1) - t * t));
    }
};

// h[rows, cols] = act(z + bias). A thread keeps one column, so it loads its bias once, and walks
// down the rows; the 32 threads of a warp touch 32 neighbours. h may be z.
template <class Activation, typename T>
__device__ void bias_activation(T* z, const T* bias, T* h, long long rows, long long cols) {
    const long long col = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    const T shift = bias[col];
    const long long stride = (long long)gridDim.y * blockDim.y;
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows;
         row += stride) {
        const long long i = row * cols + col;
        const T sum = z[i] + shift;
        if (Activation::KEEPS_INPUT) z[i] = sum;
        h[i] = Activation::value(sum);
    }
}

// grad[size] *= act'. What the slope does not use is never loaded.
template <class Activation, typename T>
__device__ void activation_backward(T* grad, const T* z, const T* h, long long size) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += stride) {
        const T input = Activation::KEEPS_INPUT ? z[i] : T(0);
        const T output = Activation::KEEPS_INPUT ? T(0) : h[i];
        grad[i] *= Activation::slope(input, output);
    }
}

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

// The largest value of the warp and where it stands, the lowest index among equal ones.
template <typename T> __device__ void warp_argmax(T& value, long long& index) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, value, offset);
        const long long other_index = __shfl_xor_sync(ALL_LANES, index, offset);
        if (other > value || (other == value && other_index < index)) {
            value = other;
            index = other_index;
        }
    }
}

template <typename T> __device__ T warp_sum(T value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

// One warp a row (blockDim.x is 32, a row for each threadIdx.y): a maximum, a sum, then the gradient
// over the logits. stats[0, row] is the row's loss, stats[1, row] is 1 when its label is the argmax.
// Exponentials are computed twice rather than stored: a row wider than L1 then costs one write.
template <typename T>
__device__ void softmax_cross_entropy(T* logits, const long long* labels, double* stats,
                                      long long rows, long long classes, T scale) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // for all 32 lanes or for none
    T* z = logits + row * classes;
    const long long label = labels[row];

    // Every lane starts from column 0, so a lane beyond the last class needs no minus infinity.
    T top = z[0];
    long long best = 0;
    for (long long j = threadIdx.x; j < classes; j += WARP)
        if (z[j] > top) {
            top = z[j];
            best = j;
        }
    warp_argmax(top, best);

    T total = 0;
    for (long long j = threadIdx.x; j < classes; j += WARP) total += exp(z[j] - top);
    total = warp_sum(total);

    if (threadIdx.x == 0) {
        // A label out of range is the caller's defect: a NaN loss, and no read outside the row.
        const bool known = label >= 0 && label < classes;
        stats[row] = known ? (double)(log(total) - (z[label] - top)) : nan("");
        stats[rows + row] = best == label ? 1.0 : 0.0;
    }
    __syncwarp();  // lane 0 has read the label's logit before its owner overwrites it

    const T factor = scale / total;
    for (long long j = threadIdx.x; j < classes; j += WARP)
        z[j] = exp(z[j] - top) * factor - (j == label ? scale : T(0));
}

}  // namespace

#define FORWARD(NAME, ACTIVATION, SUFFIX, T)                                                       \
    extern "C" __global__ void bias_##NAME##_##SUFFIX(T* z, const T* bias, T* h, long long rows,   \
                                                      long long cols) {                            \
        bias_activation<ACTIVATION>(z, bias, h, rows, cols);                                       \
    }

#define BACKWARD(NAME, ACTIVATION, SUFFIX, T)                                                      \
    extern "C" __global__ void NAME##_backward_##SUFFIX(T* grad, const T* z, const T* h,           \
                                                        long long size) {                          \
        activation_backward<ACTIVATION>(grad, z, h, size);                                         \
    }

#define KERNELS(SUFFIX, T)                                                                         \
    FORWARD(identity, Identity, SUFFIX, T)                                                         \
    FORWARD(relu, Relu, SUFFIX, T)                                                                 \
    FORWARD(tanh, Tanh, SUFFIX, T)                                                                 \
    FORWARD(gelu, Gelu, SUFFIX, T)                                                                 \
    BACKWARD(relu, Relu, SUFFIX, T)                                                                \
    BACKWARD(tanh, Tanh, SUFFIX, T)                                                                \
    BACKWARD(gelu, Gelu, SUFFIX, T)                                                                \
    extern "C" __global__ void softmax_cross_entropy_##SUFFIX(                                     \
        T* logits, const long long* labels, double* stats, long long rows, long long classes,      \
        T scale) {                                                                                 \
        softmax_cross_entropy<T>(logits, labels, stats, rows, classes, scale);                     \
    }

KERNELS(f32, float)
KERNELS(f64, double)
