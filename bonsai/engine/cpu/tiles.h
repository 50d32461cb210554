// Products of 16 rows at a time with the matrix unit of newer Intel processors (AMX).
//
// A tile has 16 lines of 64 bytes. A tile of weights is read as it lies in memory: 16 lines for 16
// outputs, each with the output's weights for 64 bytes of inputs. A tile of inputs has one line for
// every four bytes of inputs, with 16 rows side by side. Each input is split into the sum of two
// numbers, upper and lower, with as many bits as a weight: this is exact for 16-bit integers, and
// keeps 16 bits of a float32's fraction.

#pragma once

#include <cstdint>

#include "numbers.h"

const int TILE = 16;  // lines of a tile; also the outputs and the rows of a product

struct alignas(64) Line {
    uint8_t bytes[64];
};

typedef int32_t ints __attribute__((vector_size(64), may_alias));

#if defined(__linux__) && defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// Whether this process may use tiles; it has to ask the system for them
inline bool has_tiles() {
    static const bool given = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM
    return given;
}

// Configures a thread's tiles, and releases them at the end of a scope
struct UsesTiles {
    UsesTiles() {
        if (!has_tiles()) return;
        struct alignas(64) {
            uint8_t palette = 1, zeros[15] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64};
            uint8_t lines[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE};
        } settings;
        _tile_loadconfig(&settings);
    }
    ~UsesTiles() {
        if (has_tiles()) _tile_release();
    }
};

// Transposes a matrix of 16 vectors: two of its quarters are swapped, then two of each quarter, ...
inline void transpose(ints* x) {
    for (int size = 8; size; size /= 2) {
        ints upper, lower;
        for (int l = 0; l < 16; l++) {
            upper[l] = l & size ? 16 + l - size : l;
            lower[l] = l & size ? 16 + l : l + size;
        }
        for (int i = 0; i < 16; i++) {
            if (i & size) continue;
            const __m512i a = (__m512i)x[i], b = (__m512i)x[i + size];
            x[i] = (ints)_mm512_permutex2var_epi32(a, (__m512i)upper, b);
            x[i + size] = (ints)_mm512_permutex2var_epi32(a, (__m512i)lower, b);
        }
    }
}

// Splits inputs into upper and lower parts of 64 bytes each
inline void halve(const int16_t* x, int8_t* upper, int8_t* lower) {
    for (int i = 0; i < 64; i++) {
        upper[i] = int8_t((x[i] + 128) >> 8);
        lower[i] = int8_t(x[i] - 256 * upper[i]);
    }
}

inline void halve(const float* x, bfloat16* upper, bfloat16* lower) {
    for (int i = 0; i < 32; i++) {
        upper[i] = x[i];
        lower[i] = x[i] - float(upper[i]);
    }
}

// 64 bytes of inputs for each of up to 16 rows x, k numbers apart -> lines (2, 16): upper, lower
template <class W, class X>
void pack(const X* x, int64_t rows, int64_t k, Line* lines) {
    ints found[2][TILE] = {};
    for (int r = 0; r < TILE && r < rows; r++)
        halve(x + r * k, (W*)&found[0][r], (W*)&found[1][r]);
    for (int i = 0; i < 2; i++) {
        transpose(found[i]);
        std::memcpy(lines + i * TILE, found[i], sizeof found[i]);
    }
}

// The products of weights w (16, k) with 1 or 2 groups of 16 rows, lines (groups, blocks, 2, 16) ->
// sums (groups, 2, 16 outputs, 16 rows), of upper and lower parts. A block is 64 bytes of inputs.
template <class W, class Sum>
void tile_sums(int groups, const W* w, const W* soon, const Line* lines, int64_t blocks,
               Sum* sums) {
    const auto load = [&](int64_t group, int64_t b, int half) {
        return lines + ((group * blocks + b) * 2 + half) * TILE;
    };
#define ADD(to, from)                                                                             \
    if constexpr (sizeof(W) == 1)                                                                 \
        _tile_dpbssd(to, 6, from);                                                                \
    else                                                                                          \
        _tile_dpbf16ps(to, 6, from)
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t b = 0; b < blocks; b++) {
        const char* next = (const char*)soon + b * sizeof(Line[TILE]);
        for (int i = 0; i < TILE; i++) __builtin_prefetch(next + i * sizeof(Line), 0, 2);
        _tile_loadd(6, (const char*)w + b * sizeof(Line), blocks * sizeof(Line));
        _tile_loadd(4, load(0, b, 0), sizeof(Line));
        _tile_loadd(5, load(0, b, 1), sizeof(Line));
        ADD(0, 4);
        ADD(1, 5);
        if (groups == 1) continue;
        _tile_loadd(4, load(1, b, 0), sizeof(Line));
        _tile_loadd(5, load(1, b, 1), sizeof(Line));
        ADD(2, 4);
        ADD(3, 5);
    }
#undef ADD
    _tile_stored(0, sums, sizeof(Line));
    _tile_stored(1, sums + 256, sizeof(Line));
    if (groups == 1) return;
    _tile_stored(2, sums + 512, sizeof(Line));
    _tile_stored(3, sums + 768, sizeof(Line));
}

#else

inline bool has_tiles() { return false; }

struct UsesTiles {};

inline void transpose(ints*) {}

template <class W, class X>
void pack(const X*, int64_t, int64_t, Line*) {}

template <class W, class Sum>
void tile_sums(int, const W*, const W*, const Line*, int64_t, Sum*) {}

#endif
