// One update of n parameters in one pass over memory: the twin of psgrad.optimizers, bit for bit.
// Constants are rounded to float32 by the caller as NumPy's are; ``decay`` is coupled and 0 for none.

namespace {

__device__ float coupled(float g, float w, float decay) {
    return decay != 0.0f ? __fadd_rn(g, __fmul_rn(w, decay)) : g;
}

__device__ float averaged(float mean, float value, float keep, float take) {
    return __fadd_rn(__fmul_rn(mean, keep), __fmul_rn(value, take));
}

__device__ float descended(float w, float direction, float squares, float rate, float eps) {
    const float slope = __fdiv_rn(direction, __fadd_rn(__fsqrt_rn(squares), eps));
    return __fsub_rn(w, __fmul_rn(slope, rate));
}

struct Sgd {
    float rate, decay;
    __device__ void operator()(float& w, float g, float&, float&) const {
        w = __fsub_rn(w, __fmul_rn(coupled(g, w, decay), rate));
    }
};

struct Momentum {
    float rate, decay, keep;
    __device__ void operator()(float& w, float g, float& velocity, float&) const {
        velocity = __fadd_rn(__fmul_rn(velocity, keep), coupled(g, w, decay));
        w = __fsub_rn(w, __fmul_rn(velocity, rate));
    }
};

struct Nesterov {
    float rate, decay, keep;
    __device__ void operator()(float& w, float g, float& velocity, float&) const {
        g = coupled(g, w, decay);
        velocity = __fadd_rn(__fmul_rn(velocity, keep), g);
        w = __fsub_rn(w, __fmul_rn(__fadd_rn(g, __fmul_rn(velocity, keep)), rate));
    }
};

struct Adam {  // shrink: 1, or what AdamW multiplies w by first
    float rate, decay, keep1, take1, keep2, take2, eps, shrink;
    __device__ void operator()(float& w, float g, float& mean, float& squares) const {
        if (shrink != 1.0f) w = __fmul_rn(w, shrink);
        g = coupled(g, w, decay);
        squares = averaged(squares, __fmul_rn(g, g), keep2, take2);
        mean = averaged(mean, g, keep1, take1);
        w = descended(w, mean, squares, rate, eps);
    }
};

struct AdaGrad {
    float rate, decay, eps;
    __device__ void operator()(float& w, float g, float& squares, float&) const {
        g = coupled(g, w, decay);
        squares = __fadd_rn(squares, __fmul_rn(g, g));
        w = descended(w, g, squares, rate, eps);
    }
};

struct RmsProp {
    float rate, decay, keep, take, eps;
    __device__ void operator()(float& w, float g, float& squares, float&) const {
        g = coupled(g, w, decay);
        squares = averaged(squares, __fmul_rn(g, g), keep, take);
        w = descended(w, g, squares, rate, eps);
    }
};

template <int SLOTS, class Rule>
__device__ void update(float* params, const float* grad, float* one, float* two, i64 n, Rule rule) {
    const bool wide = aligned(params, 16) && aligned(grad, 16) && aligned(one, 16) && aligned(two, 16);
    const i64 stride = (i64)gridDim.x * blockDim.x * 4;
    for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += stride) {
        Quad w = load4(params, i, n, wide), g = load4(grad, i, n, wide);
        Quad a = {{0, 0, 0, 0}}, b = {{0, 0, 0, 0}};
        if (SLOTS > 0) a = load4(one, i, n, wide);
        if (SLOTS > 1) b = load4(two, i, n, wide);
#pragma unroll
        for (int c = 0; c < 4; c++) rule(w.v[c], g.v[c], a.v[c], b.v[c]);
        store4(params, i, n, wide, w);
        if (SLOTS > 0) store4(one, i, n, wide, a);
        if (SLOTS > 1) store4(two, i, n, wide, b);
    }
}

}  // namespace

extern "C" __global__ void sgd(float* params, const float* grad, i64 n, float rate, float decay) {
    update<0>(params, grad, nullptr, nullptr, n, Sgd{rate, decay});
}

extern "C" __global__ void momentum(float* params, const float* grad, float* velocity, i64 n,
                                    float rate, float decay, float keep) {
    update<1>(params, grad, velocity, nullptr, n, Momentum{rate, decay, keep});
}

extern "C" __global__ void nesterov(float* params, const float* grad, float* velocity, i64 n,
                                    float rate, float decay, float keep) {
    update<1>(params, grad, velocity, nullptr, n, Nesterov{rate, decay, keep});
}

extern "C" __global__ void adam(float* params, const float* grad, float* mean, float* squares,
                                i64 n, float rate, float decay, float keep1, float take1,
                                float keep2, float take2, float eps, float shrink) {
    update<2>(params, grad, mean, squares, n,
              Adam{rate, decay, keep1, take1, keep2, take2, eps, shrink});
}

extern "C" __global__ void adagrad(float* params, const float* grad, float* squares, i64 n,
                                   float rate, float decay, float eps) {
    update<1>(params, grad, squares, nullptr, n, AdaGrad{rate, decay, eps});
}

extern "C" __global__ void rmsprop(float* params, const float* grad, float* squares, i64 n,
                                   float rate, float decay, float keep, float take, float eps) {
    update<1>(params, grad, squares, nullptr, n, RmsProp{rate, decay, keep, take, eps});
}
