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

struct bfloat16 {
    uint16_t bits;
    operator float() const {
        const uint32_t wide = uint32_t(bits) << 16;
        float x;
        std::memcpy(&x, &wide, 4);
        return x;
    }
    bfloat16& operator=(float x) {  // to nearest, ties to even
        uint32_t wide;
        std::memcpy(&wide, &x, 4);
        bits = std::isnan(x) ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
        return *this;
    }
};

// The products of one row of weights with R rows of activations, k inputs each.
template <int R>
inline void dot(const int8_t* w, const int16_t* q, int64_t k, int32_t* sums) {
    int32_t sum[R] = {};
    for (int64_t j = 0; j < k; j++)
        for (int r = 0; r < R; r++) sum[r] += int32_t(w[j]) * q[r * k + j];
    for (int r = 0; r < R; r++) sums[r] = sum[r];
}

// w (n, k), scale (n), bias (n) or null, x (rows, k) -> y (rows, n)
template <class T>
void product(const int8_t* w, const float* scale, const float* bias, const T* x, T* y,
             int64_t rows, int64_t n, int64_t k, int threads) {
    std::vector<int16_t> q(rows * k);
    std::vector<float> step(rows);
    const int64_t room = std::numeric_limits<int32_t>::max() / (127 * k);
    const float most = std::min<int64_t>(std::numeric_limits<int16_t>::max(), room);
    for (int64_t r = 0; r < rows; r++, x += k) {
        float largest = 0;
        bool finite = true;
        for (int64_t j = 0; j < k; j++) {
            largest = std::max(largest, std::fabs(float(x[j])));
            finite &= std::isfinite(float(x[j]));
        }
        const float up = finite && largest > 0 ? most / largest : 0;
        for (int64_t j = 0; j < k; j++)
            q[r * k + j] = up > 0 ? int16_t(std::nearbyint(float(x[j]) * up)) : 0;
        step[r] = finite ? largest / most : std::numeric_limits<float>::quiet_NaN();
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float plus = bias ? bias[i] : 0;
        for (int64_t r = 0; r < rows;) {
            int32_t sums[4];
            const int taken = rows - r >= 4 ? 4 : rows - r >= 2 ? 2 : 1;
            const auto part = taken == 4 ? dot<4> : taken == 2 ? dot<2> : dot<1>;
            part(w + i * k, &q[r * k], k, sums);
            for (int t = 0; t < taken; t++, r++)
                y[r * n + i] = sums[t] * (scale[i] * step[r]) + plus;
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
