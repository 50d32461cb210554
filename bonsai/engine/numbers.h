// Numbers in the C++ of this folder, and vectors of as many as a register of 512 bits has room for.

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

inline float total(const floats& x) {  // in halves: a loop over the lanes takes twice as long
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    const float* lanes = (const float*)&x;
    const eight e = read<eight>(lanes) + read<eight>(lanes + 8);
    lanes = (const float*)&e;
    const four f = read<four>(lanes) + read<four>(lanes + 4);
    return (f[0] + f[2]) + (f[1] + f[3]);
}
