// The k largest magnitudes, exactly, by radix select, and all that reach a threshold: the twin of
// select.py. Among equal magnitudes the lowest indices win; positions come out rising.
//
// Exact: three rounds of count_digits and pick_digit settle the k-th largest magnitude, 11, 10 and
// 10 bits at a time; collect writes what is larger, and of its equals the first ones. A threshold
// needs collect alone, which then adds, compares and writes in one pass.

namespace {

constexpr int BUCKETS = 2048;  // 2^11; the later rounds use half of them
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int LOADS = 4;                       // quads of a thread
constexpr int WARP_ELEMENTS = 32 * 4 * LOADS;  // side by side
constexpr int TILE = WARPS * WARP_ELEMENTS;

// What is larger in the low half, what is equal in the high half: of a tile, 16 bits are enough.
__device__ u32 packed_count(u32 magnitude, u32 threshold) {
    return magnitude > threshold ? 1u : magnitude == threshold ? 1u << 16 : 0u;
}

__device__ u32 magnitude_of(float v) { return __float_as_uint(v) & MAGNITUDE; }

// v[i..i+3] after v += add where that is given, which is stored.
__device__ Quad summed(float* v, const float* add, i64 i, i64 n, bool wide) {
    Quad q = load4(v, i, n, wide);
    if (add) {
        const Quad more = load4(add, i, n, wide);
#pragma unroll
        for (int c = 0; c < 4; c++) q.v[c] = __fadd_rn(q.v[c], more.v[c]);
        store4(v, i, n, wide, q);
    }
    return q;
}

// A word of a tile: 2 bits say what it holds, then 31 bits of what is larger and 31 of what is equal.
enum Told { NOTHING = 0, OWN = 1, ALL_SO_FAR = 2 };
constexpr u64 FIELD = 0x7fffffffull;

__device__ u64 word_of(Told told, u64 larger, u64 equal) {
    return (u64)told << 62 | larger << 31 | equal;
}

// What is larger and equal in all tiles before ``tile``: by one warp, 32 tiles at a look. Tiles are
// numbered as they start, so the ones before it run, or have run.
__device__ void look_back(u64* words, i64 tile, int lane, u64& larger, u64& equal) {
    larger = equal = 0;
    for (i64 last = tile - 1; last >= 0; last -= 32) {
        const i64 mine = last - lane;
        u64 word = word_of(ALL_SO_FAR, 0, 0);  // before the first tile
        do {
            if (mine >= 0) word = atomicAdd(&words[mine], 0ull);
        } while (__ballot_sync(ALL_LANES, word >> 62 == NOTHING));
        const u32 complete = __ballot_sync(ALL_LANES, word >> 62 == ALL_SO_FAR);
        const int stop = complete ? __ffs(complete) - 1 : 31;
        u64 above = lane <= stop ? word >> 31 & FIELD : 0, same = lane <= stop ? word & FIELD : 0;
        for (int offset = 16; offset > 0; offset /= 2) {
            above += __shfl_xor_sync(ALL_LANES, above, offset);
            same += __shfl_xor_sync(ALL_LANES, same, offset);
        }
        larger += above;
        equal += same;
        if (complete) return;
    }
}

}  // namespace

// state[0]: the bits of the magnitude that are settled; state[1]: how many of those that have them
// are still wanted. counts[BUCKETS] is 0 at the start. v += add first, where that is given.
extern "C" __global__ void count_digits(float* v, const float* add, u32* counts, const u32* state,
                                        i64 n, int shift, int bits) {
    __shared__ u32 mine[BUCKETS];
    for (int i = threadIdx.x; i < BUCKETS; i += blockDim.x) mine[i] = 0;
    __syncthreads();
    const bool wide = aligned(v, 16) && aligned(add, 16);
    const u32 settled = state[0] >> shift >> bits;
    const i64 stride = (i64)gridDim.x * blockDim.x * 4;
    for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += stride) {
        const Quad q = summed(v, add, i, n, wide);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const u32 magnitude = magnitude_of(q.v[c]);
            if (i + c < n && magnitude >> shift >> bits == settled)
                atomicAdd(&mine[magnitude >> shift & ((1u << bits) - 1)], 1u);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BUCKETS; i += blockDim.x)
        if (mine[i]) atomicAdd(&counts[i], mine[i]);
}

// One block of THREADS: finds the digit of the k-th largest, and makes counts 0 for the next round.
extern "C" __global__ void pick_digit(u32* counts, u32* state, int shift) {
    constexpr int EACH = BUCKETS / THREADS;
    __shared__ u32 sums[THREADS];
    u32 sum = 0;
    for (int i = 0; i < EACH; i++) sum += counts[threadIdx.x * EACH + i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 wanted = state[1];
        int at = THREADS - 1;
        for (; at > 0 && sums[at] < wanted; at--) wanted -= sums[at];
        int digit = at * EACH + EACH - 1;
        for (; digit > at * EACH && counts[digit] < wanted; digit--) wanted -= counts[digit];
        state[0] |= (u32)digit << shift;
        state[1] = wanted;
    }
    __syncthreads();
    for (int i = 0; i < EACH; i++) counts[threadIdx.x * EACH + i] = 0;
}

// Writes positions and values of what is larger than state[0], and of the first state[1] that are
// equal to it; of all that, the first ``room``. counts[0] becomes how many there are, with those
// that found no room; counts[1] and words[tiles] are 0 at the start. A block of THREADS for a TILE.
extern "C" __global__ void collect(float* v, const float* add, const u32* state, i64* where,
                                   float* values, u64* words, u32* counts, i64 n, i64 room) {
    __shared__ i64 ticket;
    __shared__ u32 of_warp[WARPS];
    __shared__ u64 before[2];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (threadIdx.x == 0) ticket = (i64)atomicAdd(&counts[1], 1u);
    __syncthreads();
    const i64 tile = ticket, begin = tile * TILE + warp * WARP_ELEMENTS + lane * 4;
    const u32 threshold = state[0];
    const u64 ties = state[1];
    const bool wide = aligned(v, 16) && aligned(add, 16);

    Quad q[LOADS];
    u32 rank[LOADS], total = 0;  // rank: of this lane's first element, in its warp
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
        const i64 i = begin + load * 128;
        q[load] = summed(v, add, i, n, wide);
        u32 own = 0;
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (i + c < n) own += packed_count(magnitude_of(q[load].v[c]), threshold);
        u32 sum = own;
        if (__ballot_sync(ALL_LANES, own != 0))
            for (int offset = 1; offset < 32; offset *= 2) {
                const u32 other = __shfl_up_sync(ALL_LANES, sum, offset);
                if (lane >= offset) sum += other;
            }
        rank[load] = total + sum - own;
        total += __shfl_sync(ALL_LANES, sum, 31);
    }
    if (lane == 0) of_warp[warp] = total;
    __syncthreads();
    if (warp == 0) {
        u64 larger = 0, equal = 0;
        u32 all = 0;
        for (int i = 0; i < WARPS; i++) all += of_warp[i];
        const u64 own_larger = all & 0xffffu, own_equal = all >> 16;
        if (tile > 0) {
            if (lane == 0) atomicExch(&words[tile], word_of(OWN, own_larger, own_equal));
            look_back(words, tile, lane, larger, equal);
        }
        if (lane == 0) {
            const u64 to_here = larger + own_larger, equal_to_here = equal + own_equal;
            atomicExch(&words[tile], word_of(ALL_SO_FAR, to_here, equal_to_here));
            before[0] = larger;
            before[1] = equal;
            if ((tile + 1) * TILE >= n)
                counts[0] = (u32)(to_here + (equal_to_here < ties ? equal_to_here : ties));
        }
    }
    __syncthreads();
    u32 earlier = 0;
    for (int i = 0; i < warp; i++) earlier += of_warp[i];
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
        u32 here = earlier + rank[load];
        const i64 i = begin + load * 128;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const u32 count = i + c < n ? packed_count(magnitude_of(q[load].v[c]), threshold) : 0;
            const u64 larger = before[0] + (here & 0xffffu), equal = before[1] + (here >> 16);
            const i64 at = (i64)(larger + (equal < ties ? equal : ties));
            here += count;
            if (count == 0 || (count > 1 && equal >= ties) || at >= room) continue;
            where[at] = i + c;
            values[at] = q[load].v[c];
        }
    }
}
