// Numbers in the C++ of this folder.

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
