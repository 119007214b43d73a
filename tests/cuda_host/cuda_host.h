// CUDA for tests without a GPU: what of the language the kernels use, by g++ on one CPU thread.
//
// Blocks run one after the other, and in a block each thread is a fiber. A fiber runs until it waits:
// at __syncthreads for its block, at a function of the warp (*_sync) for its 32 lanes. So code that
// forgets a barrier reads what is not there yet, and code that waits where others do not come is a
// deadlock, which is told. Shared memory is static: what is not written first is what the last block
// left. Where threads only compute, nothing can be said about races that the order of fibers hides;
// ``backwards`` runs them in the other order.

#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

static dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace cuda_host {

constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10;

struct Fiber {
    ucontext_t start;
    jmp_buf here;
    std::vector<char> stack = std::vector<char>(STACK);
    dim3 index;
    unsigned generation = 0;  // of the warp's functions
    bool fresh = true, done = false;
};

struct Warp {
    unsigned long long values[2][WARP];
    int arrived[2] = {0, 0}, kind[2] = {0, 0}, gone[2] = {0, 0};
};

static std::vector<Fiber*> fibers;
static std::vector<Warp> warps;
static jmp_buf scheduler;
static int current, threads, at_barrier;
static unsigned barrier;
static bool moved;
static const char* fault;
static void (*body)(void*);
static void* body_arguments;

__attribute__((noinline)) static void yield() {
    if (_setjmp(fibers[current]->here) == 0) _longjmp(scheduler, 1);
    asm volatile("" ::: "memory");
}

[[noreturn]] static void fail(const char* what) {
    fault = what;
    _longjmp(scheduler, 1);
}

static void entry() {
    body(body_arguments);
    fibers[current]->done = true;
    moved = true;
    _longjmp(scheduler, 1);
}

// Runs the fibers of a block to their ends; false with ``fault`` where that cannot be.
__attribute__((noinline)) static bool run_block(bool backwards) {
    static volatile int position;
    static volatile int alive;
    at_barrier = 0;
    warps.assign((threads + WARP - 1) / WARP, Warp());
    for (int i = 0; i < threads; i++) {
        Fiber& fiber = *fibers[i];
        fiber.fresh = true;
        fiber.done = false;
        fiber.generation = 0;
    }
    do {
        moved = false;
        alive = 0;
        for (position = 0; position < threads; position = position + 1) {
            current = backwards ? threads - 1 - position : position;
            Fiber& fiber = *fibers[current];
            if (fiber.done) continue;
            alive = alive + 1;
            threadIdx = fiber.index;
            if (_setjmp(scheduler) == 0) {
                if (fiber.fresh) {
                    fiber.fresh = false;
                    moved = true;
                    getcontext(&fiber.start);
                    fiber.start.uc_stack.ss_sp = fiber.stack.data();
                    fiber.start.uc_stack.ss_size = STACK;
                    fiber.start.uc_link = nullptr;
                    makecontext(&fiber.start, entry, 0);
                    setcontext(&fiber.start);
                }
                _longjmp(fiber.here, 1);
            }
            if (fault) return false;
        }
        if (alive && !moved) {
            fault = "deadlock: threads wait where others of them do not come";
            return false;
        }
    } while (alive);
    return true;
}

static void sync_block() {
    const unsigned mine = barrier;
    moved = true;
    if (++at_barrier == threads) {
        at_barrier = 0;
        barrier++;
        return;
    }
    while (barrier == mine) yield();
    moved = true;
}

// Every lane's value, once all lanes have come with the same function; ``read`` looks at them.
template <class Read>
static auto together(unsigned mask, unsigned long long value, int kind, Read read) {
    if (mask != 0xffffffffu) fail("a mask of a part of the warp");
    if (threads % WARP) fail("a block of broken warps");
    Fiber& fiber = *fibers[current];
    Warp& warp = warps[current / WARP];
    const int side = fiber.generation++ & 1;
    if (warp.arrived[side] && warp.kind[side] != kind) fail("lanes call different functions");
    warp.kind[side] = kind;
    warp.values[side][current % WARP] = value;
    warp.arrived[side]++;
    moved = true;
    while (warp.arrived[side] < WARP) yield();
    moved = true;
    auto result = read(warp.values[side]);
    if (++warp.gone[side] == WARP) warp.gone[side] = warp.arrived[side] = 0;
    return result;
}

template <typename T> static unsigned long long bits_of(T value) {
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <typename T> static T shuffle(unsigned mask, T value, int kind, int lane) {
    return together(mask, bits_of(value), kind, [&](const unsigned long long* values) {
        T result;
        memcpy(&result, &values[lane], sizeof result);
        return result;
    });
}

template <typename... Args, size_t... I>
static void call(void (*kernel)(Args...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<Args>*)arguments[I]...);
}

// Launches a kernel; returns what went wrong, or null.
template <typename... Args>
static const char* launch(void (*kernel)(Args...), const unsigned* grid, const unsigned* block,
                          void** arguments, int backwards) {
    struct Bound {
        void (*kernel)(Args...);
        void** arguments;
    } bound{kernel, arguments};
    body = [](void* it) {
        Bound& bound = *(Bound*)it;
        call(bound.kernel, bound.arguments, std::index_sequence_for<Args...>());
    };
    body_arguments = &bound;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    threads = block[0] * block[1] * block[2];
    fault = nullptr;
    if (threads < 1 || threads > 1024) return "a block has 1 to 1024 threads";
    while ((int)fibers.size() < threads) fibers.push_back(new Fiber);
    for (int i = 0; i < threads; i++) {
        const unsigned t = i;
        fibers[i]->index = {t % block[0], t / block[0] % block[1], t / block[0] / block[1]};
    }
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                if (!run_block(backwards)) return fault;
            }
    return nullptr;
}

// The size of each argument, negative for floats, 0 for pointers; returns how many there are.
template <typename... Args> static int types(void (*)(Args...), int* out) {
    int n = 0;
    ((out[n++] = std::is_pointer_v<Args>            ? 0
                 : std::is_floating_point_v<Args> ? -(int)sizeof(Args)
                                                    : (int)sizeof(Args)),
     ...);
    return n;
}

}  // namespace cuda_host

inline void __syncthreads() { cuda_host::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    cuda_host::together(mask, 0, 1, [](const unsigned long long*) { return 0; });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return cuda_host::together(mask, predicate != 0, 2, [](const unsigned long long* values) {
        unsigned result = 0;
        for (int i = 0; i < 32; i++) result |= (unsigned)values[i] << i;
        return result;
    });
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int offset) {
    return cuda_host::shuffle(mask, value, 3, (cuda_host::current % 32) ^ offset);
}
template <typename T> T __shfl_sync(unsigned mask, T value, int lane) {
    return cuda_host::shuffle(mask, value, 4, lane & 31);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, int offset) {
    const int lane = cuda_host::current % 32;
    return cuda_host::shuffle(mask, value, 5, lane >= offset ? lane - offset : lane);
}

template <typename T> T atomicAdd(T* p, T value) {
    const T old = *p;
    *p = old + value;
    return old;
}
template <typename T> T atomicExch(T* p, T value) {
    const T old = *p;
    *p = value;
    return old;
}

inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __float_as_uint(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
inline float __uint_as_float(unsigned u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
