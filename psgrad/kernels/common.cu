// What scaled.cu, select.cu and optim.cu share; cuda_launch.py puts it before each of them.
//
// Nothing is included, so that NVRTC needs no header. Arithmetic that decides a byte is written with
// intrinsics that round to the nearest and are never contracted to a fused multiply-add: each
// operation is rounded as NumPy rounds it.

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

namespace {

[[maybe_unused]] constexpr u32 ALL_LANES = 0xffffffffu;
[[maybe_unused]] constexpr u32 MAGNITUDE = 0x7fffffffu;

struct Quad {
    float v[4];
};

__device__ inline bool aligned(const void* p, u64 nbytes) { return ((u64)p & (nbytes - 1)) == 0; }

// p[i..i+3], with 0 beyond the end; by one load of 128 bits where ``wide`` says that p allows it.
__device__ inline Quad load4(const float* p, i64 i, i64 end, bool wide) {
    Quad q;
    if (wide && i + 4 <= end) {
        const float4 f = *(const float4*)(p + i);
        q.v[0] = f.x, q.v[1] = f.y, q.v[2] = f.z, q.v[3] = f.w;
        return q;
    }
#pragma unroll
    for (int c = 0; c < 4; c++) q.v[c] = i + c < end ? p[i + c] : 0.0f;
    return q;
}

__device__ inline void store4(float* p, i64 i, i64 end, bool wide, const Quad& q) {
    if (wide && i + 4 <= end) {
        float4 f;
        f.x = q.v[0], f.y = q.v[1], f.z = q.v[2], f.w = q.v[3];
        *(float4*)(p + i) = f;
        return;
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
        if (i + c < end) p[i + c] = q.v[c];
}

// The hash of hashing.py, step for step.

__device__ inline u64 mix64(u64 z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

__device__ inline u32 hash32(u64 key, u32 low) {
    u32 x = low * 0x9E3779B9u + (u32)key;
    x = (x ^ (x >> 17)) * 0xED5AD4BBu + (u32)(key >> 32);
    x = (x ^ (x >> 11)) * 0xAC4C1B51u;
    x = (x ^ (x >> 15)) * 0x31848BABu;
    return x ^ (x >> 14);
}

// hashing.dither of elements e..e+3. ``key`` is that of ``high``, the upper word of e / 2 where the
// caller's elements begin; it changes every 2^33 elements.
__device__ inline Quad dither4(u64 stream, u64 e, u64 key, u64 high) {
    Quad noise;
    u32 h = 0;
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const u64 pair = (e + c) >> 1;
        const u32 odd = (u32)(e + c) & 1;
        if (c == 0 || !odd)
            h = hash32(pair >> 32 == high ? key : mix64(stream + (pair >> 32)), (u32)pair);
        const short half = (short)(((odd ? h >> 16 : h) & 0xffffu) | 1u);
        noise.v[c] = (float)half * 1.52587890625e-05f;  // 2^-16: exact
    }
    return noise;
}

// Over the lanes that differ in the bits below ``width`` only: all 32, or a block of fewer.

__device__ inline u32 lanes_max(u32 value, int width) {
    for (int offset = width / 2; offset > 0; offset /= 2) {
        const u32 other = __shfl_xor_sync(ALL_LANES, value, offset);
        if (other > value) value = other;
    }
    return value;
}

__device__ inline double lanes_sum(double value, int width) {
    for (int offset = width / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

}  // namespace
