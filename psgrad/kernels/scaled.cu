// Blocks of floats as small integers times a step: the twin of plain.encode_scaled, of codecs.sign
// and of plain.add_scaled, for whole chunks. How codes lie in bytes is said in bits.py.

namespace {

constexpr int GROUP = 32 << 10;
constexpr float TINY = 1.17549435e-38f;  // the smallest normal number
constexpr float LARGEST = 3.402823466e+38f;
constexpr int SPAN = 128;  // elements that a warp loads at a time: four a lane

// As in cuda_scaled.py; BLOCK_MAX is what is neither of them.
enum Measure { BLOCK_MAX = 0, BLOCK_NORM = 1, BLOCK_MEAN = 2 };
enum Packing { BYTES, PLANES, SIGNS };

struct Chunk {
    const float* x;   // [n]
    float* residual;  // [n] or null
    float* steps;     // [blocks]
    u8* packed;
    u32* any;  // becomes 1 where a step is not 0
    i64 n;
    int log_block, tile;  // a thread block takes ``tile`` elements: whole blocks
    float top, limit;
    int measure, noisy;
    u64 stream;
    i64 start;
};

// One lane's part of what a block is measured by.
struct Partial {
    u32 top;
    double sum;

    __device__ void add(const Quad& q, int measure) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const u32 bits = __float_as_uint(q.v[c]) & MAGNITUDE;
            if (bits > top) top = bits;  // magnitudes are ordered as their bits are
            if (measure == BLOCK_NORM) sum += (double)q.v[c] * (double)q.v[c];
            if (measure == BLOCK_MEAN) sum += (double)__uint_as_float(bits);
        }
    }

    // The measure of the block of ``width`` lanes, which has ``size`` elements.
    __device__ float over(int width, int measure, i64 size) {
        if (measure == BLOCK_MAX) return __uint_as_float(lanes_max(top, width));
        const double total = lanes_sum(sum, width);
        if (measure == BLOCK_MEAN) return (float)(total / (double)(size > 0 ? size : 1));
        const double norm = sqrt(total) * (1.0 + 1.52587890625e-05);
        return norm < (double)LARGEST ? (float)norm : LARGEST;
    }
};

__device__ Quad gather(const Chunk& it, i64 i, i64 end, bool wide) {
    Quad q = load4(it.x, i, end, wide);
    if (it.residual) {
        const Quad kept = load4(it.residual, i, end, wide);
#pragma unroll
        for (int c = 0; c < 4; c++) q.v[c] = __fadd_rn(kept.v[c], q.v[c]);
    }
    return q;
}

// The codes of four elements, the lowest byte first; q becomes what is kept back of them.
template <int PACKING>
__device__ u32 quantize(const Chunk& it, Quad& q, float step, i64 i, u64 key, u64 high) {
    u32 codes = 0;
    if (PACKING == SIGNS) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const u32 sign = __float_as_uint(q.v[c]) & ~MAGNITUDE;
            codes |= (sign >> 31) << c;
            q.v[c] = __fsub_rn(q.v[c], __uint_as_float(__float_as_uint(step) | sign));
        }
        return codes;
    }
    Quad noise;
    if (it.noisy) noise = dither4(it.stream, (u64)(it.start + i), key, high);
#pragma unroll
    for (int c = 0; c < 4; c++) {
        float t = __fdiv_rn(q.v[c], step);
        if (it.noisy) t = __fadd_rn(t, noise.v[c]);
        const float code = rintf(t);
        codes |= ((u32)(int)code & 0xffu) << (8 * c);
        q.v[c] = __fsub_rn(q.v[c], __fmul_rn(code, step));
    }
    return codes;
}

// Codes of elements i..i+3 of the chunk to where they belong; ``room`` is the group's shared memory.
template <int PACKING>
__device__ void put(const Chunk& it, u32 codes, i64 i, i64 end, i64 tile_begin, i8* room) {
    if (PACKING == SIGNS) {
        const u32 other = __shfl_xor_sync(ALL_LANES, codes, 1);
        if (!(threadIdx.x & 1) && i < end) it.packed[i >> 3] = (u8)(codes | other << 4);
    } else if (PACKING == PLANES) {
        *(u32*)(room + (i - tile_begin)) = codes;
    } else if (i + 4 <= end && aligned(it.packed + i, 4)) {
        *(u32*)(it.packed + i) = codes;
    } else {
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (i + c < end) it.packed[i + c] = (u8)(codes >> (8 * c));
    }
}

// ROUNDS: how often a warp loads SPAN elements to have its blocks, kept in registers; 0: so often
// that they are loaded again (from the cache, as a rule).
template <int PACKING, int ROUNDS>
__device__ void encode_blocks(const Chunk& it, i64 tile_begin, i64 end, i8* room) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int block = 1 << it.log_block;
    const int span = block > SPAN ? block : SPAN, rounds = ROUNDS ? ROUNDS : span / SPAN;
    const int width = block < SPAN ? block / 4 : 32;  // lanes that share a block
    const bool wide = aligned(it.x, 16) && aligned(it.residual, 16);
    const u64 high = (u64)(it.start + tile_begin) >> 33, key = mix64(it.stream + high);

    for (i64 base = tile_begin + (i64)warp * span; base < end; base += (i64)warps * span) {
        Quad kept[ROUNDS ? ROUNDS : 1];
        Partial partial = {0, 0.0};
#pragma unroll
        for (int round = 0; round < rounds; round++) {
            const i64 i = base + round * SPAN + lane * 4;
            Quad q = gather(it, i, end, wide);
            partial.add(q, it.measure);
            if (ROUNDS) kept[ROUNDS ? round : 0] = q;
            else if (it.residual) store4(it.residual, i, end, wide, q);
        }
        const i64 mine = base + lane * 4, first = mine >> it.log_block << it.log_block;
        const i64 size = end - first < block ? end - first : block;
        const float measured = partial.over(width, it.measure, size);
        float step = measured, told = measured;
        if (PACKING != SIGNS) {
            step = __fdiv_rn(measured, it.top);
            step = step < TINY ? TINY : step;
            step = step > it.limit ? it.limit : step;
            told = measured == 0.0f ? 0.0f : step;
        }
        if ((lane & (width - 1)) == 0 && mine < end) {
            it.steps[mine >> it.log_block] = told;
            if (told != 0.0f && *it.any == 0) *it.any = 1;  // read first: stores would queue up
        }
#pragma unroll
        for (int round = 0; round < rounds; round++) {
            const i64 i = base + round * SPAN + lane * 4;
            Quad q;
            if (ROUNDS) q = kept[ROUNDS ? round : 0];
            else q = load4(it.residual ? it.residual : it.x, i, end, wide);
            const u32 codes = quantize<PACKING>(it, q, step, i, key, high);
            put<PACKING>(it, codes, i, end, tile_begin, room);
            if (it.residual) store4(it.residual, i, end, wide, q);
        }
    }
}

// The planes of a group of m codes as digits of p bytes.
__device__ void pack_planes(const i8* room, int m, int digits, int radix, u8* out) {
    const int p = (m + digits - 1) / digits;
    int bias = 0, weight = 1;
    for (int d = 0; d < digits; d++, weight *= radix) bias += radix / 2 * weight;
    const int at_once = p % 4 == 0 && aligned(out, 4) ? 4 : 1;
    for (int j = threadIdx.x * at_once; j < p; j += blockDim.x * at_once) {
        u32 bytes = 0;
        for (int c = 0; c < at_once; c++) {
            int value = bias;
            weight = 1;
            for (int at = j + c; at < m; at += p, weight *= radix) value += room[at] * weight;
            bytes |= (u32)value << (8 * c);
        }
        if (at_once == 4) *(u32*)(out + j) = bytes;
        else out[j] = (u8)bytes;
    }
}

template <int PACKING, int ROUNDS> __device__ void encode(const Chunk& it, int digits, int radix) {
    __shared__ u32 words[PACKING == PLANES ? GROUP / 4 : 1];
    i8* room = (i8*)words;
    const i64 begin = (i64)blockIdx.x * it.tile;
    const i64 end = begin + it.tile < it.n ? begin + it.tile : it.n;
    encode_blocks<PACKING, ROUNDS>(it, begin, end, room);
    if (PACKING == PLANES) {
        __syncthreads();
        const i64 group_nbytes = (GROUP + digits - 1) / digits;
        pack_planes(room, (int)(end - begin), digits, radix, it.packed + blockIdx.x * group_nbytes);
    }
}

// The code of element ``at`` of a group, given the byte that holds it as digit d.
__device__ int digit_of(u32 byte, int d, int radix) {
    if (radix != 3) {
        const int bits = radix == 16 ? 4 : 2;
        return (int)(byte >> (bits * d) & (u32)(radix - 1)) - radix / 2;
    }
    const u32 rest = d == 0   ? byte
                     : d == 1 ? byte / 3
                     : d == 2 ? byte / 9
                     : d == 3 ? byte / 27
                              : byte / 81;
    return (int)(d == 4 ? rest : rest % 3) - 1;
}

__device__ u32 bytes4(const u8* p, i64 j, i64 end) {
    if (j + 4 <= end && aligned(p + j, 4)) return *(const u32*)(p + j);
    u32 word = 0;
    for (int c = 0; c < 4; c++)
        if (j + c < end) word |= (u32)p[j + c] << (8 * c);
    return word;
}

// The codes of elements i..i+3 of a chunk of n; i is a multiple of 4.
__device__ void codes4(const u8* packed, i64 i, i64 n, int digits, int radix, int codes[4]) {
    if (digits == 1) {
        const u32 word = bytes4(packed, i, n);
#pragma unroll
        for (int c = 0; c < 4; c++) codes[c] = (i8)(word >> (8 * c));
        return;
    }
    if (digits == 8) {
        const u32 nibble = packed[i >> 3] >> (i & 4);
#pragma unroll
        for (int c = 0; c < 4; c++) codes[c] = 1 - 2 * (int)(nibble >> c & 1u);
        return;
    }
    const i64 group = i / GROUP;
    const i64 left = n - group * GROUP;
    const int m = left < GROUP ? (int)left : GROUP, p = (m + digits - 1) / digits;
    const u8* from = packed + group * ((GROUP + digits - 1) / digits);
    int j = (int)(i % GROUP), d = 0;
    for (; j >= p; d++) j -= p;
    const u32 word = p % 4 == 0 ? bytes4(from, j, p) : 0;
#pragma unroll
    for (int c = 0; c < 4; c++) {
        codes[c] = 0;
        if (i + c >= n) continue;
        codes[c] = digit_of(p % 4 == 0 ? word >> (8 * c) & 0xffu : from[j], d, radix);
        if (++j == p && p % 4) j = 0, d++;
    }
}

}  // namespace

#define ENCODE(NAME, PACKING, ROUNDS)                                                              \
    extern "C" __global__ void __launch_bounds__(512) NAME##_##ROUNDS(                             \
        const float* x, float* residual, float* steps, u8* packed, u32* any, i64 n,                \
        int log_block, int tile, int digits, int radix, float top, float limit, int measure,       \
        int noisy, u64 stream, i64 start) {                                                        \
        const Chunk it = {x,    residual, steps, packed, any,     n,     log_block,                \
                          tile, top,      limit, measure, noisy, stream, start};                   \
        encode<PACKING, ROUNDS>(it, digits, radix);                                                \
    }

#define ENCODES(NAME, PACKING)                                                                     \
    ENCODE(NAME, PACKING, 1)                                                                       \
    ENCODE(NAME, PACKING, 2)                                                                       \
    ENCODE(NAME, PACKING, 4)                                                                       \
    ENCODE(NAME, PACKING, 0)

ENCODES(encode_bytes, BYTES)
ENCODES(encode_planes, PLANES)
ENCODES(encode_signs, SIGNS)

// out[n] += shares[0] C(v_0) + shares[1] C(v_1) + ..., in this order; with ``first`` out is not read.
// ``table`` has the addresses of the steps and of the packed codes of each payload.
extern "C" __global__ void add_payloads(float* out, const u64* table, const float* shares,
                                        int payloads, i64 n, int log_block, int digits, int radix,
                                        int first) {
    const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= n) return;
    const bool wide = aligned(out, 16);
    Quad sum = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (!first) sum = load4(out, i, n, wide);
    for (int w = 0; w < payloads; w++) {
        const float* steps = (const float*)table[2 * w];
        const float step = __fmul_rn(steps[i >> log_block], shares[w]);
        int codes[4];
        codes4((const u8*)table[2 * w + 1], i, n, digits, radix, codes);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float part = __fmul_rn((float)codes[c], step);
            sum.v[c] = first && w == 0 ? part : __fadd_rn(sum.v[c], part);
        }
    }
    store4(out, i, n, wide, sum);
}
