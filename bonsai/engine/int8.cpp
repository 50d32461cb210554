// y = x W^T + b for a few rows x and weights of 8 bits, reading each weight once.
//
// The activations of a row become integers of as many bits as the sums have room for (14 for 768
// inputs, 12 for 3,072). The sums are then exact, in whatever order, and a row's result does not
// depend on its neighbours. Plain loops, of which the compiler makes vector instructions. For many
// rows another library's products of bytes are faster: `split` makes bytes of the integers, `join`
// one result of what comes back.

#include <algorithm>
#include <limits>
#include <vector>

#include "numbers.h"

namespace {

// |x| as bits, whose order is that of the numbers; NaN comes last.
inline uint32_t magnitude(float x) { return as<uint32_t>(x) & 0x7fffffff; }

// The products of N rows of weights with R rows of activations, k inputs each. As many sums at a
// time as hide how long a multiplication takes.
template <int N, int R>
void dot(const int8_t* w, const int16_t* q, int64_t k, int32_t* sums) {
    int32_t sum[N * R] = {};
    for (int64_t j = 0; j < k; j++)
        for (int i = 0; i < N; i++)
            for (int r = 0; r < R; r++) sum[i * R + r] += int32_t(w[i * k + j]) * q[r * k + j];
    for (int i = 0; i < N * R; i++) sums[i] = sum[i];
}

template <int N>
void dots(int R, const int8_t* w, const int16_t* q, int64_t k, int32_t* sums) {
    (R == 8 ? dot<N, 8> : R == 4 ? dot<N, 4> : R == 2 ? dot<N, 2> : dot<N, 1>)(w, q, k, sums);
}

// A row x (k) -> integers q (k) and the step that they count: x is about step q. A row that is not
// finite becomes zeros and a step that is no number.
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

// w (n, k), scale (n), bias (n) or null, x (rows, k) -> y (rows, n)
template <class T>
void product(const int8_t* w, const float* scale, const float* bias, const T* x, T* y,
             int64_t rows, int64_t n, int64_t k, int threads) {
    std::vector<int16_t> q(rows * k);
    std::vector<float> step(rows);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) step[r] = round_row(x + r * k, &q[r * k], k);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i += 2) {
            const int N = n - i >= 2 ? 2 : 1;
            const int64_t soon = std::min(i + 10, n) * k;
            for (int64_t j = (i + 8) * k; j < soon; j += 64) __builtin_prefetch(w + j, 0, 2);
            for (int64_t r = 0; r < rows;) {
                const int64_t left = rows - r;
                const int R = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
                int32_t sums[16];
                (N == 2 ? dots<2> : dots<1>)(R, w + i * k, &q[r * k], k, sums);
                for (int s = 0; s < N * R; s++) {
                    const int64_t out = i + s / R, in = r + s % R;
                    y[in * n + out] = sums[s] * (scale[out] * step[in]) + (bias ? bias[out] : 0);
                }
                r += R;
            }
        }
    }
}

// x (rows, k) -> the integers' upper and lower bytes as halves (2, rows, k), and step (rows): x is
// about step (256 halves[0] + halves[1])
template <class T>
void split(const T* x, int8_t* halves, float* step, int64_t rows, int64_t k, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<int16_t> q(k);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            step[r] = round_row(x + r * k, q.data(), k);
            int8_t *upper = halves + r * k, *lower = upper + rows * k;
            for (int64_t j = 0; j < k; j++) {
                upper[j] = int8_t((q[j] + 128) >> 8);
                lower[j] = int8_t(q[j] - 256 * upper[j]);
            }
        }
    }
}

// What both bytes gave, halves (2, rows, n), -> y (rows, n)
template <class T>
void join(const float* halves, const float* step, const float* bias, T* y, int64_t rows, int64_t n,
          int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *upper = halves + r * n, *lower = upper + rows * n;
        for (int64_t i = 0; i < n; i++)
            y[r * n + i] = (256 * upper[i] + lower[i]) * step[r] + (bias ? bias[i] : 0);
    }
}

}  // namespace

#define EXPORT(T)                                                                                 \
    extern "C" void product_##T(const int8_t* w, const float* scale, const float* bias,           \
                                const T* x, T* y, int64_t rows, int64_t n, int64_t k,             \
                                int threads) {                                                    \
        product(w, scale, bias, x, y, rows, n, k, threads);                                       \
    }                                                                                             \
    extern "C" void split_##T(const T* x, int8_t* halves, float* step, int64_t rows, int64_t k,   \
                              int threads) {                                                      \
        split(x, halves, step, rows, k, threads);                                                 \
    }                                                                                             \
    extern "C" void join_##T(const float* halves, const float* step, const float* bias, T* y,     \
                             int64_t rows, int64_t n, int threads) {                              \
        join(halves, step, bias, y, rows, n, threads);                                            \
    }
EXPORT(float32)
EXPORT(bfloat16)
