// CUDA's names for a C++ compiler: the threads of a block take turns between barriers.
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#define __device__
#define __global__
#define __shared__ static

struct Index {
    unsigned x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

static float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

static unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float from_half(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * std::ldexp(exponent ? 1024.0f + fraction : fraction, (exponent ? exponent : 1) - 25);
}

static unsigned short to_half(float x) {
    const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (x != x) return 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    const int exponent = size < std::ldexp(1.0f, -14) ? -14 : std::ilogb(size);
    // An eleventh bit that is carried over becomes part of the exponent.
    const int units = (int)std::nearbyint(std::ldexp(size, 10 - exponent));
    return sign | (unsigned short)(units + ((exponent + 14) << 10));
}

static const std::size_t STACK = 1 << 16;
static ucontext_t scheduler;
static std::vector<ucontext_t> threads;
static std::vector<char> stacks, done;
static const std::function<void()>* body;
static unsigned current;

static void __syncthreads() { swapcontext(&threads[current], &scheduler); }

static void thread() {
    (*body)();
    done[current] = 1;
}

// Run all blocks; 1 if a barrier was not reached by every thread of its block.
static int run(unsigned grid, unsigned block, const std::function<void()>& kernel) {
    body = &kernel;
    gridDim.x = grid;
    blockDim.x = block;
    threads.resize(block);
    stacks.resize(block * STACK);
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
        done.assign(block, 0);
        for (unsigned i = 0; i < block; ++i) {
            getcontext(&threads[i]);
            threads[i].uc_stack.ss_sp = &stacks[i * STACK];
            threads[i].uc_stack.ss_size = STACK;
            threads[i].uc_link = &scheduler;
            makecontext(&threads[i], thread, 0);
        }
        for (unsigned finished = 0; finished < block;) {
            for (current = 0; current < block; ++current) {
                threadIdx.x = current;
                swapcontext(&scheduler, &threads[current]);
                finished += done[current];
            }
            if (finished % block) return 1;
        }
    }
    return 0;
}
