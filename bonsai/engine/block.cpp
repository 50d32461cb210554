// One token through the blocks of a GPT (norm, attention to its cache, norm, MLP) in one call.
//
// The products of such a step read their weights as fast as the memory gives them. What lies
// between has so little to compute that starting each operation by itself takes longer than the
// operation. So every thread computes all of the small things for itself, its part of the products,
// and its heads. All numbers between are float32.

#include <omp.h>

#include <cmath>
#include <vector>

#include "kernels.h"

namespace {

struct Matrix {  // (n, k); int8 with a scale per row, or of the block's type with no scale
    const void* weight;
    const float *scale, *bias;  // or null
    int64_t n, k;
};

struct Norm {
    const float *gain, *bias;  // or null
};

enum Activation { GELU, GELU_TANH, RELU, RELU2, SWIGLU };  // block.py has the same order

struct Block {
    Matrix qkv, out, up, down;
    Norm first, second;
    int64_t heads, kv_heads, channels, window;  // window: keys that are seen; 0: all
    float scale, head_eps;
    int32_t rms, head_norm, activation;
};

// LayerNorm or RMSNorm of x (n) -> y (n), which may be x
void normalise(const float* x, float* y, int64_t n, bool rms, float eps, Norm norm = {}) {
    float mean = 0, square = 0;
    if (!rms) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < n; i++) mean += x[i];
        mean /= n;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(square / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale;
    for (int64_t i = 0; norm.gain && i < n; i++) y[i] *= norm.gain[i];
    for (int64_t i = 0; norm.bias && i < n; i++) y[i] += norm.bias[i];
}

// tanh(x) for x >= 0
inline float tanh_positive(float x) {
    const float e = exponential(-2 * x);
    return (1 - e) / (1 + e);
}

// erf(x) for x >= 0 to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26)
inline float erf_positive(float x) {
    const float t = 1 / (1 + 0.3275911f * x);
    const float series[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    float p = 0;
    for (float c : series) p = (p + c) * t;  // the last one's t too
    return 1 - p * exponential(-x * x);
}

// x (n, or 2n for SwiGLU) -> y (n)
void activate(int32_t kind, const float* x, float* y, int64_t n) {
    if (kind == GELU) {
        for (int64_t i = 0; i < n; i++) {
            const float e = erf_positive(std::abs(x[i]) * 0.70710678f);
            y[i] = 0.5f * x[i] * (1 + std::copysign(e, x[i]));
        }
    } else if (kind == GELU_TANH) {
        for (int64_t i = 0; i < n; i++) {
            const float u = 0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
            y[i] = 0.5f * x[i] * (1 + std::copysign(tanh_positive(std::abs(u)), x[i]));
        }
    } else if (kind == SWIGLU) {
        for (int64_t i = 0; i < n; i++) {
            const float e = exponential(-std::abs(x[i]));  // of sigmoid(|x|) = 1 / (1 + e)
            y[i] = x[i] * (x[i] > 0 ? 1 : e) / (1 + e) * x[n + i];
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            const float positive = x[i] < 0 ? 0 : x[i];  // NaN stays
            y[i] = kind == RELU2 ? positive * positive : positive;
        }
    }
}

// What each thread has for itself
struct Thread {
    int64_t id, count;
    std::vector<int16_t> rounded;  // activations as integers
    std::vector<float> weights;  // of the keys

    // its part of `items`
    int64_t begin(int64_t items) const { return items * id / count; }
    int64_t end(int64_t items) const { return items * (id + 1) / count; }
};

// Its part of the product of m with x (k): store(place, number). Towards the end it fetches the
// beginning of its part of `next`, which is read after other work.
template <class T, class Store>
void multiply(Thread& self, const Matrix& m, const Matrix* next, const float* x, Store store) {
    const int64_t size = m.scale ? 1 : sizeof(T), row = m.k * size;  // bytes
    const int64_t begin = self.begin((m.n + 1) / 2) * 2;
    const int64_t end = std::min(self.end((m.n + 1) / 2) * 2, m.n);
    const char *weight = (const char*)m.weight, *stop = weight + end * row, *then = stop;
    if (next) then = (const char*)next->weight + self.begin((next->n + 1) / 2) * 2 * next->k * size;
    const float step = m.scale ? round_row(x, self.rounded.data(), m.k) : 0;
    for (int64_t i = begin; i < end; i += 2) {
        const int N = end - i >= 2 ? 2 : 1;
        const char *w = weight + i * row, *soon = w + AHEAD;
        if (soon >= stop) soon = then + (soon - stop);
        float y[2];
        if (m.scale) {
            int32_t sums[2];
            const int16_t* q = self.rounded.data();
            (N == 2 ? dot<2, 1> : dot<1, 1>)((int8_t*)w, (int8_t*)soon, q, m.k, sums);
            for (int j = 0; j < N; j++) y[j] = sums[j] * (m.scale[i + j] * step);
        } else {
            (N == 2 ? dot<2, 1, T> : dot<1, 1, T>)((T*)w, (T*)soon, x, m.k, y);
        }
        for (int j = 0; j < N; j++) store(i + j, y[j] + (m.bias ? m.bias[i + j] : 0));
    }
}

// A head of queries or keys x -> y (channels), normalised and turned by its position's angles
void place(const Block& b, const float* x, float* y, const float* cos, const float* sin) {
    const int64_t n = b.channels;
    std::copy_n(x, n, y);
    if (b.head_norm) normalise(x, y, n, b.rms, b.head_eps);
    if (!cos) return;
    for (int64_t i = 0; i < n / 2; i++) {
        const float low = y[i], high = y[n / 2 + i];
        y[i] = low * cos[i] + high * sin[i];
        y[n / 2 + i] = high * cos[n / 2 + i] + low * sin[n / 2 + i];
    }
}

// x (D) -> y (D); keys, values (blocks, kv_heads, positions, channels): `position` before, one more
// afterwards, blocks `layer`, heads `head` and positions `key` apart; cos, sin (channels) or null
template <class T>
void step(const Block* blocks, int count, const T* x, T* y, T* keys, T* values, int64_t position,
          int64_t layer, int64_t head, int64_t key, const float* cos, const float* sin,
          int threads) {
    const int64_t D = blocks->qkv.k, inner = blocks->out.k, channels = blocks->channels;
    const int64_t group = blocks->heads / blocks->kv_heads, wide = blocks->up.n;
    const auto attend = one_of<float, T>(channels);
    std::vector<float> stream(x, x + D), qkv(blocks->qkv.n), heads(inner), hidden(wide);
#pragma omp parallel num_threads(threads)
    {
        const size_t most = std::max({D, inner, wide});
        Thread self{omp_get_thread_num(), omp_get_num_threads()};
        self.rounded.resize(most);
        self.weights.resize(position + 1);
        std::vector<float> room(most);
        float* own = room.data();
        const auto add = [&](int64_t i, float z) { stream[i] += z; };

        for (int i = 0; i < count; i++) {
            const Block& b = blocks[i];
            T *K = keys + i * layer, *V = values + i * layer;
            normalise(stream.data(), own, D, b.rms, 1e-5f, b.first);
            multiply<T>(self, b.qkv, &b.out, own, [&](int64_t i, float z) { qkv[i] = z; });
#pragma omp barrier
            for (int64_t h = self.begin(b.kv_heads); h < self.end(b.kv_heads); h++) {
                const int64_t at = h * head + position * key;
                const float* value = &qkv[(b.heads + b.kv_heads + h) * channels];
                place(b, &qkv[(b.heads + h) * channels], own, cos, sin);
                for (int64_t c = 0; c < channels; c++) {
                    K[at + c] = own[c];
                    V[at + c] = value[c];
                }
            }
#pragma omp barrier
            const int64_t first = b.window ? std::max<int64_t>(0, position + 1 - b.window) : 0;
            for (int64_t h = self.begin(b.heads); h < self.end(b.heads); h++) {
                const int64_t at = h / group * head + first * key;
                const int64_t next = std::min(h + 1, b.heads - 1) / group * head + first * key;
                place(b, &qkv[h * channels], own, cos, sin);
                attend(own, K + at, V + at, K + next, nullptr, &heads[h * channels],
                       position + 1 - first, key, b.scale, self.weights.data());
            }
#pragma omp barrier
            multiply<T>(self, b.out, &b.up, heads.data(), add);
#pragma omp barrier
            normalise(stream.data(), own, D, b.rms, 1e-5f, b.second);
            multiply<T>(self, b.up, &b.down, own, [&](int64_t i, float z) { hidden[i] = z; });
#pragma omp barrier
            activate(b.activation, hidden.data(), own, b.down.k);
            multiply<T>(self, b.down, i + 1 < count ? &blocks[i + 1].qkv : nullptr, own, add);
#pragma omp barrier
        }
    }
    for (int64_t i = 0; i < D; i++) y[i] = stream[i];
}

}  // namespace

#define EXPORT(T)                                                                                 \
    extern "C" void block_##T(const Block* blocks, int count, const T* x, T* y, T* keys,          \
                              T* values, int64_t position, int64_t layer, int64_t head,           \
                              int64_t key, const float* cos, const float* sin, int threads) {     \
        step(blocks, count, x, y, keys, values, position, layer, head, key, cos, sin, threads);   \
    }
EXPORT(float32)
EXPORT(bfloat16)
