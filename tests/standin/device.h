// CUDA's names for a C++ compiler: the threads of a block take turns between barriers.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
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

// A thread lives on, from block to block: a switch by setjmp needs no call of the system.
struct Thread {
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t first;
    jmp_buf place;
    bool started = false, done = false;
};

static jmp_buf scheduler;
static std::vector<Thread> threads;
static const std::function<void()>* body;
static unsigned current;

static void __syncthreads() {
    if (!_setjmp(threads[current].place)) _longjmp(scheduler, 1);
}

static void live() {
    for (;;) {
        (*body)();
        threads[current].done = true;
        __syncthreads();
    }
}

static void resume(Thread& thread) {
    if (_setjmp(scheduler)) return;
    if (thread.started) _longjmp(thread.place, 1);
    thread.started = true;
    getcontext(&thread.first);
    thread.first.uc_stack.ss_sp = thread.stack.get();
    thread.first.uc_stack.ss_size = STACK;
    thread.first.uc_link = nullptr;
    makecontext(&thread.first, live, 0);
    setcontext(&thread.first);
}

// Run all blocks; 1 if a barrier was not reached by every thread of its block.
static int run(unsigned grid, unsigned block, const std::function<void()>& kernel) {
    body = &kernel;
    gridDim.x = grid;
    blockDim.x = block;
    if (threads.size() < block) threads = std::vector<Thread>(block);
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
        for (Thread& thread : threads) thread.done = false;
        for (unsigned finished = 0; finished < block;) {
            for (current = 0; current < block; ++current) {
                threadIdx.x = current;
                resume(threads[current]);
                finished += threads[current].done;
            }
            if (finished % block) {
                threads.clear();
                return 1;
            }
        }
    }
    return 0;
}
