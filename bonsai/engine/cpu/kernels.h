// The loops of one thread: products of a few rows of weights, and one head of attention.
//
// While some weights are multiplied, later ones are prefetched into the cache: `soon`, usually
// AHEAD bytes further on. The processor itself does not prefetch beyond a page.

#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <limits>
#include <type_traits>

#include "numbers.h"

const int64_t AHEAD = 8192;
const int64_t LINE = 64;  // bytes of a cache line

template <class T>
inline void prefetch(const T* x, int64_t count) {
    for (int64_t i = 0; i < count; i += LINE / sizeof(T)) __builtin_prefetch(x + i, 0, 2);
}

// ---- weights of 8 bits ----

const int64_t PIECE = 512;  // weights that are prefetched and multiplied at a time

// |x| as an integer, in the same order; NaN is larger than all numbers
inline uint32_t magnitude(float x) { return as<uint32_t>(x) & 0x7fffffff; }

// The products of N rows of weights with R rows of activations, k inputs each
template <int N, int R>
void dot(const int8_t* w, const int8_t* soon, const int16_t* q, int64_t k, int32_t* sums) {
    int32_t sum[N * R] = {};
    int64_t j = 0;
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    __m512i vectors[N * R] = {};
    for (; j + LINE <= k; j += LINE)
        for (int i = 0; i < N; i++) {
            __builtin_prefetch(soon + i * k + j, 0, 2);
            for (int64_t h = j; h < j + LINE; h += LINE / 2) {
                const __m256i bytes = _mm256_loadu_si256((const __m256i*)(w + i * k + h));
                const __m512i weights = _mm512_cvtepi8_epi16(bytes);
                for (int r = 0; r < R; r++) {
                    __m512i& to = vectors[i * R + r];
                    to = _mm512_dpwssd_epi32(to, weights, _mm512_loadu_si512(q + r * k + h));
                }
            }
        }
    for (int i = 0; i < N * R; i++) sum[i] = _mm512_reduce_add_epi32(vectors[i]);
#endif
    for (; j < k; j += PIECE) {  // plain loops, which the compiler vectorises
        const int64_t end = std::min(j + PIECE, k);
        for (int i = 0; i < N; i++) prefetch(soon + i * k + j, end - j);
        for (int64_t h = j; h < end; h++)
            for (int i = 0; i < N; i++)
                for (int r = 0; r < R; r++) sum[i * R + r] += int32_t(w[i * k + h]) * q[r * k + h];
    }
    std::copy_n(sum, N * R, sums);
}

// Rounds a row x (k) to integers q (k) and returns the step: x is about step * q. A row that is not
// finite becomes zeros, and its step NaN.
template <class T>
float round_row(const T* x, int16_t* q, int64_t k) {
    const int64_t room = std::numeric_limits<int32_t>::max() / (127 * k);
    const float most = std::min<int64_t>(std::numeric_limits<int16_t>::max() - 128, room);
    uint32_t largest = 0;
    for (int64_t j = 0; j < k; j++) largest = std::max(largest, magnitude(x[j]));
    if (largest >= magnitude(std::numeric_limits<float>::infinity())) {
        std::fill_n(q, k, 0);
        return std::numeric_limits<float>::quiet_NaN();
    }
    const float top = std::max(as<float>(largest), 1e-30f), up = most / top;
    for (int64_t j = 0; j < k; j++) q[j] = int16_t(std::nearbyint(float(x[j]) * up));
    return top / most;
}

// ---- weights of 16 or 32 bits ----

// The products of N rows of weights with R rows of activations, k inputs each
template <int N, int R, class T>
void dot(const T* w, const T* soon, const float* x, int64_t k, float* sums) {
    floats sum[N][R] = {};
    int64_t j = 0;
    const int64_t line = LINE / sizeof(T);
    for (; j + line <= k; j += line) {
        for (int i = 0; i < N; i++) __builtin_prefetch(soon + i * k + j, 0, 2);
        for (int64_t h = j; h < j + line; h += LANES) {
            floats in[R];
            for (int r = 0; r < R; r++) in[r] = load(x + r * k + h);
            for (int i = 0; i < N; i++) {
                const floats weight = load(w + i * k + h);
                for (int r = 0; r < R; r++) sum[i][r] += weight * in[r];
            }
        }
    }
    floats all[N * R];  // a copy: sums whose address was taken would not stay in registers
    for (int i = 0; i < N; i++)
        for (int r = 0; r < R; r++) all[i * R + r] = sum[i][r];
    if constexpr (N * R == LANES) {
        const floats found = totals(all);
        std::memcpy(sums, &found, sizeof found);
    } else {
        for (int i = 0; i < N * R; i++) sums[i] = total(all[i]);
    }
    for (int i = 0; j < k && i < N; i++)
        for (int r = 0; r < R; r++) {
            float rest = 0;
            for (int64_t t = j; t < k; t++) rest += float(w[i * k + t]) * x[r * k + t];
            sums[i * R + r] += rest;
        }
}

// ---- weights of any kind ----

// Calls `dot` for the first 8, 4, 2 or 1 of `rows`; returns how many
template <int N, class W, class X, class Sum>
int dot_most(const W* w, const W* soon, const X* x, int64_t rows, int64_t k, Sum* sums) {
    if (rows >= 8) return dot<N, 8>(w, soon, x, k, sums), 8;
    if (rows >= 4) return dot<N, 4>(w, soon, x, k, sums), 4;
    if (rows >= 2) return dot<N, 2>(w, soon, x, k, sums), 2;
    return dot<N, 1>(w, soon, x, k, sums), 1;
}

// The products of `outputs` rows of weights, 1 or 2, with x (rows, k): calls store(output, row,
// sum) for each
template <class W, class X, class Store>
void dots(int outputs, const W* w, const W* soon, const X* x, int64_t rows, int64_t k,
          Store store) {
    std::conditional_t<std::is_same_v<W, int8_t>, int32_t, float> sums[16];
    for (int64_t row = 0, R; row < rows; row += R) {
        const X* at = x + row * k;
        R = outputs == 2 ? dot_most<2>(w, soon, at, rows - row, k, sums)
                         : dot_most<1>(w, soon, at, rows - row, k, sums);
        for (int i = 0; i < outputs; i++)
            for (int r = 0; r < R; r++) store(i, row + r, sums[i * R + r]);
    }
}

// ---- attention ----

// e^x for x <= 0 to a relative error of 3e-7: 2^n times a Taylor polynomial, as a compiler can
// vectorise it
inline float exponential(float x) {
    const float t = std::max(x * 1.44269504f, -126.0f), n = std::nearbyint(t), f = t - n;
    const float taylor[] = {1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f,
                            2.40226507e-1f, 6.93147181e-1f, 1.0f};
    float p = 0;
    for (float c : taylor) p = p * f + c;
    return p * as<float>((int32_t(n) + 127) << 23);
}

// Attention of one query q of a head of N * LANES channels -> y. K, V (keys, channels), with stride
// `stride`; K_next: the keys that are needed next, which are prefetched; see (keys): which keys are
// seen, null: all; weight: scratch memory for `keys` numbers.
template <int N, class Q, class T>
void attend_head(const Q* q, const T* K, const T* V, const T* K_next, const uint8_t* see, Q* y,
                 int64_t keys, int64_t stride, float scale, float* weight) {
    floats query[N], out[N] = {};
    for (int i = 0; i < N; i++) query[i] = load(q + i * LANES) * scale;
    for (int64_t s = 0; s < keys; s++) {
        prefetch(V + s * stride, N * LANES);
        floats score = load(K + s * stride) * query[0];
        for (int i = 1; i < N; i++) score += load(K + s * stride + i * LANES) * query[i];
        weight[s] = total(score);
    }
    const float hidden = -std::numeric_limits<float>::infinity();
    float top = hidden, all = 0;
    for (int64_t s = 0; see && s < keys; s++) weight[s] = see[s] ? weight[s] : hidden;
    for (int64_t s = 0; s < keys; s++) top = std::max(top, weight[s]);
#pragma omp simd reduction(+ : all)
    for (int64_t s = 0; s < keys; s++) all += weight[s] = exponential(weight[s] - top);
    for (int64_t s = 0; s < keys; s++) {
        prefetch(K_next + s * stride, N * LANES);
        for (int i = 0; i < N; i++) out[i] += load(V + s * stride + i * LANES) * weight[s];
    }
    for (int j = 0; j < N * LANES; j++) y[j] = out[j / LANES][j % LANES] / all;
}

// `attend_head` for heads of so many channels, which must be LANES times 1 to 8
template <class Q, class T>
auto attend_head_of(int64_t channels) {
    decltype(&attend_head<1, Q, T>) const all[] = {
        attend_head<1, Q, T>, attend_head<2, Q, T>, attend_head<3, Q, T>, attend_head<4, Q, T>,
        attend_head<5, Q, T>, attend_head<6, Q, T>, attend_head<7, Q, T>, attend_head<8, Q, T>};
    return all[channels / LANES - 1];
}
