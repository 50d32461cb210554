// Types of numbers for the C++ of this folder, and vectors of 16 numbers: 512 bits of float32.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

template <class To, class From>
To as(From from) {  // the same bits
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

typedef float float32;

struct bfloat16 {
    uint16_t bits;
    operator float() const { return as<float>(uint32_t(bits) << 16); }
    bfloat16& operator=(float x) {  // to nearest, ties to even
        const uint32_t wide = as<uint32_t>(x);
        bits = std::isnan(x) ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
        return *this;
    }
};

// ---- vectors ----

const int LANES = 16;
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

template <class Vector, class T>
Vector read(const T* x) {
    Vector y;
    std::memcpy(&y, x, sizeof y);
    return y;
}

inline floats load(const float* x) { return read<floats>(x); }

inline floats load(const bfloat16* x) {
    return (floats)(__builtin_convertvector(read<halves>(x), words) << 16);
}

// The sum of a vector's numbers, by halves. The vector's address is never taken: a compiler would
// then keep it in memory, not in a register.
inline float total(floats x) {
#ifdef __clang__
#define SHUFFLE(...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SHUFFLE(...) __builtin_shuffle(x, words{__VA_ARGS__})
#endif
    x += SHUFFLE(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += SHUFFLE(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += SHUFFLE(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    x += SHUFFLE(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#undef SHUFFLE
    return x[0];
}

// The sums of 16 vectors, which are overwritten. Each step adds halves of two vectors at once, in
// the same order of additions as `total`.
inline floats totals(floats* x) {
#ifdef __clang__
    floats y;
    for (int i = 0; i < LANES; i++) y[i] = total(x[i]);
    return y;
#else
    const words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
    for (int size = LANES / 2; size; size /= 2) {
        const words second = (lane & size) != 0;  // lanes that take the second vector
        const words here = lane + (second & (LANES - size)), there = here + size;
#pragma GCC unroll 8
        for (int i = 0; i < size; i++)
            x[i] = __builtin_shuffle(x[i], x[i + size], here) +
                   __builtin_shuffle(x[i], x[i + size], there);
    }
    return x[0];
#endif
}
