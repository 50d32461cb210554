// y = x W^T + b for a few rows x, reading each weight once.
//
// The sums are float32, whatever the numbers are, and in the same order for any number of rows: a
// row's result does not depend on its neighbours. The weights are fetched a good way ahead, as the
// processor itself does not look beyond a page.

#include <vector>

#include "kernels.h"

namespace {

// w (n, k), bias (n) or null, x (rows, k) -> y (rows, n)
template <class T>
void product(const T* w, const T* bias, const T* x, T* y, int64_t rows, int64_t n, int64_t k,
             int threads) {
    const std::vector<float> in(x, x + rows * k);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i += 2) {
        const int N = n - i >= 2 ? 2 : 1;
        for (int64_t r = 0; r < rows;) {
            const int64_t left = rows - r;
            const int R = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            float sums[16];
            (N == 2 ? dots<2, T> : dots<1, T>)(R, w + i * k, &in[r * k], k, sums);
            for (int s = 0; s < N * R; s++) {
                const int64_t out = i + s / R;
                y[(r + s % R) * n + out] = sums[s] + (bias ? float(bias[out]) : 0);
            }
            r += R;
        }
    }
}

}  // namespace

#define EXPORT(T)                                                                                 \
    extern "C" void linear_##T(const T* w, const T* bias, const T* x, T* y, int64_t rows,         \
                               int64_t n, int64_t k, int threads) {                               \
        product(w, bias, x, y, rows, n, k, threads);                                              \
    }
EXPORT(float32)
EXPORT(bfloat16)
