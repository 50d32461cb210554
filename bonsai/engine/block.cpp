// A few tokens through the blocks of a GPT (norm, attention to a cache, norm, MLP) in one call.
//
// The products of such a step read their weights as fast as the memory gives them. What lies
// between has so little to compute that starting each operation by itself takes longer than the
// operation. A token's result does not depend on what else is computed with it. All numbers between
// are float32.

#include <cmath>
#include <vector>

#include "product.h"

namespace {

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

// Keys and values (blocks, texts, heads, positions, channels) of tokens before these
template <class T>
struct Cache {
    T *keys, *values;
    const int64_t* lengths;             // positions of each text
    int64_t block, text, head, position;  // how far apart they lie
};

// Angles (texts, tokens, channels) of rotary positions
struct Angles {
    const float *cos, *sin;  // or null
    int64_t text;            // how far apart those of two texts lie; 0: they are the same
};

// x (texts, tokens, D) -> y, like it; each token sees those of its text up to itself
template <class T>
void step(const Block* blocks, int count, const T* x, T* y, int64_t texts, int64_t tokens,
          const Cache<T>& cache, const Angles& angles, int threads) {
    const Block& b0 = *blocks;
    const int64_t D = b0.qkv.k, inner = b0.out.k, wide = b0.up.n, width = b0.qkv.n;
    const int64_t channels = b0.channels, group = b0.heads / b0.kv_heads, rows = texts * tokens;
    const int64_t most = std::max({D, inner, wide}), parts = b0.heads + 2 * b0.kv_heads;
    const int64_t longest = *std::max_element(cache.lengths, cache.lengths + texts) + tokens;
    const auto attend = one_of<float, T>(channels);
    std::vector<float> stream(x, x + rows * D), qkv(rows * width), hidden(rows * wide);
    std::vector<float> heads(rows * inner);
    static thread_local Input mine;  // kept: new memory takes time
    Input& shared = mine;
    shared.make_room(rows, most);
#pragma omp parallel num_threads(threads)
    {
        const Thread self;
        const UsesTiles tiles;
        std::vector<float> query(channels), weights(longest);
        if (rows == 1) mine.make_room(1, most);
        Input& in = rows == 1 ? mine : shared;
        const auto normalised = [&](const Block& b, const Matrix& m, const Norm& norm) {
            in.prepare<T>(m, rows, [&](int64_t r, float* to) {
                normalise(&stream[r * D], to, D, b.rms, 1e-5f, norm);
            });
        };
        const auto turned = [&](const Block& b, int64_t r, int64_t part, float* to) {
            const int64_t at = r / tokens * angles.text + r % tokens * channels;
            const float *cos = angles.cos, *sin = angles.sin;
            place(b, &qkv[(r * parts + part) * channels], to, cos ? cos + at : cos, sin + at);
        };
        const auto add = [&](int64_t r, int64_t i, float z) { stream[r * D + i] += z; };

        for (int i = 0; i < count; i++) {
            const Block& b = blocks[i];
            T *K = cache.keys + i * cache.block, *V = cache.values + i * cache.block;
            const auto position = [&](int64_t r) { return cache.lengths[r / tokens] + r % tokens; };

            normalised(b, b.qkv, b.first);
            multiply<T>(self, b.qkv, &b.out, in, rows,
                        [&](int64_t r, int64_t c, float z) { qkv[r * width + c] = z; });
#pragma omp barrier
            for (int64_t t = self.begin(rows * b.kv_heads); t < self.end(rows * b.kv_heads); t++) {
                const int64_t r = t / b.kv_heads, h = t % b.kv_heads;
                const int64_t at = r / tokens * cache.text + h * cache.head +
                                   position(r) * cache.position;
                turned(b, r, b.heads + h, query.data());
                const float* value = &qkv[(r * parts + b.heads + b.kv_heads + h) * channels];
                for (int64_t c = 0; c < channels; c++) {
                    K[at + c] = query[c];
                    V[at + c] = value[c];
                }
            }
#pragma omp barrier
            // the tokens of a text that read the same keys one after another
            const auto task = [&](int64_t t) {
                struct { int64_t r, h, first, at; } found;
                const int64_t n = t / tokens;  // of (text, head)
                found.r = n / b.heads * tokens + t % tokens, found.h = n % b.heads;
                found.first = b.window ? std::max<int64_t>(0, position(found.r) + 1 - b.window) : 0;
                found.at = n / b.heads * cache.text + found.h / group * cache.head +
                           found.first * cache.position;
                return found;
            };
            const int64_t tasks = rows * b.heads;
            for (int64_t t = self.begin(tasks); t < self.end(tasks); t++) {
                const auto now = task(t), next = task(std::min(t + 1, tasks - 1));
                turned(b, now.r, now.h, query.data());
                attend(query.data(), K + now.at, V + now.at, K + next.at, nullptr,
                       &heads[(now.r * b.heads + now.h) * channels],
                       position(now.r) + 1 - now.first, cache.position, b.scale, weights.data());
            }
#pragma omp barrier
            in.prepare<T>(b.out, rows, [&](int64_t r, float* to) { std::copy_n(&heads[r * inner], inner, to); });
            multiply<T>(self, b.out, &b.up, in, rows, add);
#pragma omp barrier
            normalised(b, b.up, b.second);
            multiply<T>(self, b.up, &b.down, in, rows,
                        [&](int64_t r, int64_t c, float z) { hidden[r * wide + c] = z; });
#pragma omp barrier
            in.prepare<T>(b.down, rows, [&](int64_t r, float* to) {
                activate(b.activation, &hidden[r * wide], to, b.down.k);
            });
            multiply<T>(self, b.down, i + 1 < count ? &blocks[i + 1].qkv : nullptr, in, rows, add);
#pragma omp barrier
        }
    }
    for (int64_t i = 0; i < rows * D; i++) y[i] = stream[i];
}

}  // namespace

#define EXPORT(T)                                                                                 \
    extern "C" void block_##T(const Block* blocks, int count, const T* x, T* y, int64_t texts,    \
                              int64_t tokens, T* keys, T* values, const int64_t* lengths,         \
                              int64_t block, int64_t text, int64_t head, int64_t position,        \
                              const float* cos, const float* sin, int64_t turn, int threads) {    \
        const Cache<T> cache{keys, values, lengths, block, text, head, position};                 \
        step(blocks, count, x, y, texts, tokens, cache, {cos, sin, turn}, threads);               \
    }
EXPORT(float32)
EXPORT(bfloat16)
