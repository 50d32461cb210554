// y = x W^T + b for a few rows x and weights of 8 bits, reading each weight once.
//
// The activations of a row become integers of as many bits as the sums have room for (14 for 768
// inputs, 12 for 3,072). The sums are then exact, in whatever order, and a row's result does not
// depend on its neighbours. Plain loops, of which the compiler makes vector instructions.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

template <class To, class From>
To as(From from) {  // the same bits
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

struct bfloat16 {
    uint16_t bits;
    operator float() const { return as<float>(uint32_t(bits) << 16); }
    bfloat16& operator=(float x) {  // to nearest, ties to even
        const uint32_t wide = as<uint32_t>(x);
        bits = std::isnan(x) ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
        return *this;
    }
};

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

// w (n, k), scale (n), bias (n) or null, x (rows, k) -> y (rows, n)
template <class T>
void product(const int8_t* w, const float* scale, const float* bias, const T* x, T* y,
             int64_t rows, int64_t n, int64_t k, int threads) {
    std::vector<int16_t> q(rows * k);
    std::vector<float> step(rows);
    const int64_t room = std::numeric_limits<int32_t>::max() / (127 * k);
    const float most = std::min<int64_t>(std::numeric_limits<int16_t>::max(), room);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            uint32_t largest = 0;
            for (int64_t j = 0; j < k; j++) largest = std::max(largest, magnitude(x[r * k + j]));
            if (largest >= magnitude(std::numeric_limits<float>::infinity())) {
                std::fill_n(&q[r * k], k, 0);
                step[r] = std::numeric_limits<float>::quiet_NaN();
                continue;
            }
            const float top = std::max(as<float>(largest), 1e-30f);
            const float up = most / top;
            step[r] = top / most;
            for (int64_t j = 0; j < k; j++)
                q[r * k + j] = int16_t(std::nearbyint(float(x[r * k + j]) * up));
        }
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

}  // namespace

extern "C" void product_float32(const int8_t* w, const float* scale, const float* bias,
                                const float* x, float* y, int64_t rows, int64_t n, int64_t k,
                                int threads) {
    product(w, scale, bias, x, y, rows, n, k, threads);
}

extern "C" void product_bfloat16(const int8_t* w, const float* scale, const float* bias,
                                 const bfloat16* x, bfloat16* y, int64_t rows, int64_t n,
                                 int64_t k, int threads) {
    product(w, scale, bias, x, y, rows, n, k, threads);
}
