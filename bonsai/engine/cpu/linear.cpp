// y = x W^T + b for a few rows x, reading each weight once.
//
// Sums are float32 for any dtype. For weights of 8 bits the activations of a row are rounded to
// integers with as many bits as the sums have room for (14 for 768 inputs, 12 for 3,072), and the
// sums are exact. A row's result does not depend on the other rows, with one exception: in bfloat16
// tiles, used for many rows, add up in another order than the loops for few rows.

#include "product.h"

namespace {

const int64_t MOST = 256;  // rows at once, which bounds the memory

// x (rows, k) -> y (rows, n)
template <class T>
void product(const Matrix& m, const T* x, T* y, int64_t rows, int threads) {
    if (rows == 0) return;
    const int64_t parts = (rows + MOST - 1) / MOST, each = (rows + parts - 1) / parts;
    static thread_local Input mine;  // kept between calls, as allocating memory takes time
    Input& shared = mine;
    shared.make_room(each, m.k);
#pragma omp parallel num_threads(threads)
    {
        const Thread self;
        const UsesTiles tiles;
        if (rows == 1) mine.make_room(1, m.k);
        Input& in = rows == 1 ? mine : shared;
        // Parts of equal size: a last part of one row would be prepared by all threads at once
        for (int64_t at = 0; at < rows; at += each) {
            const int64_t some = std::min(rows - at, each);
            in.prepare<T>(m, some, [=](int64_t r, float* to) {
                std::copy_n(x + (at + r) * m.k, m.k, to);
            });
            multiply<T>(self, m, nullptr, in, some,
                        [=](int64_t r, int64_t i, float z) { y[(at + r) * m.n + i] = z; });
#pragma omp barrier
        }
    }
}

}  // namespace

#define EXPORT(T)                                                                                 \
    extern "C" void linear_##T(const void* weight, const float* scale, const float* bias,         \
                               const T* x, T* y, int64_t rows, int64_t n, int64_t k,              \
                               int threads) {                                                     \
        product<T>({weight, scale, bias, n, k}, x, y, rows, threads);                             \
    }
EXPORT(float32)
EXPORT(bfloat16)

extern "C" int linear_has_tiles() { return has_tiles(); }
