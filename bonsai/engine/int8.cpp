// y = x W^T + b for a few rows x and weights of 8 bits, reading each weight once.
//
// The activations of a row become integers of as many bits as the sums have room for (14 for 768
// inputs, 12 for 3,072). The sums are then exact, in whatever order, and a row's result does not
// depend on its neighbours. Plain loops, of which the compiler makes vector instructions. For many
// rows another library's products of bytes are faster: `split` makes bytes of the integers, `join`
// one result of what comes back.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace {

const int ALONE = 4;  // rows up to which each thread converts them itself instead of waiting

// w (n, k), scale (n), bias (n) or null, x (rows, k) -> y (rows, n)
template <class T>
void product(const int8_t* w, const float* scale, const float* bias, const T* x, T* y,
             int64_t rows, int64_t n, int64_t k, int threads) {
    const int64_t copies = rows <= ALONE ? threads : 1;
    std::vector<int16_t> rounded(copies * rows * k);
    std::vector<float> steps(copies * rows);
#pragma omp parallel num_threads(threads)
    {
        const int64_t copy = copies > 1 ? omp_get_thread_num() : 0;
        int16_t* q = &rounded[copy * rows * k];
        float* step = &steps[copy * rows];
        if (copies > 1) {
            for (int64_t r = 0; r < rows; r++) step[r] = round_row(x + r * k, q + r * k, k);
        } else {
#pragma omp for schedule(static)
            for (int64_t r = 0; r < rows; r++) step[r] = round_row(x + r * k, q + r * k, k);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i += 2) {
            const int8_t* at = w + i * k;
            dots(n - i >= 2 ? 2 : 1, at, at + AHEAD, q, rows, k, [=](int j, int64_t r, int sum) {
                y[r * n + i + j] = sum * (scale[i + j] * step[r]) + (bias ? bias[i + j] : 0);
            });
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
