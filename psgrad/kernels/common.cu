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
}  // namespace
