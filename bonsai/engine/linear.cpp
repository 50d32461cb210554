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
    std::vector<float> wide;
    const float* in = as_floats(x, rows * k, wide);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i += 2) {
        const T *at = w + i * k, *soon = at + AHEAD / sizeof(T);
        dots(n - i >= 2 ? 2 : 1, at, soon, in, rows, k, [=](int j, int64_t row, float sum) {
            y[row * n + i + j] = sum + (bias ? float(bias[i + j]) : 0);
        });
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
