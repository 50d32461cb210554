// All blocks of a GPT (norm, attention to a cache, norm, MLP) for a few tokens in one call.
//
// The products of such a step read their weights as fast as the memory allows. The operations
// between them are so small that starting each one on its own takes longer than computing it. A
// token's result does not depend on the tokens that are computed with it, except as linear.cpp
// says. All intermediate numbers are float32.

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "product.h"

namespace {

struct Norm {
    const float *gain, *bias;  // or null
};

// The activations by their names in model.py; block.py asks for the number of a name.
enum Activation { GELU, GELU_TANH, RELU, RELU2, SWIGLU };
const std::pair<const char*, Activation> ACTIVATIONS[] = {
    {"gelu", GELU}, {"gelu_tanh", GELU_TANH}, {"relu", RELU}, {"relu2", RELU2}, {"swiglu", SWIGLU}};

struct Block {
    Matrix qkv, out, up, down;
    Norm first, second;
    const float* gate;    // (kv_heads, gate_inputs), of value embeddings; or null
    int64_t gate_inputs;  // how many channels of the normalised stream the gate reads
    int64_t heads, kv_heads, channels, window;  // window: how many keys are seen; 0: all
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
    for (float c : series) p = (p + c) * t;  // the series has no constant term
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

// A query or key of one head, x -> y (channels): normalised, and rotated by its position's angles
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

// The share of the value embedding that a head adds, from the normalised stream x
float share_of(const Block& b, const float* x, int64_t head) {
    float sum = 0;
    for (int64_t i = 0; i < b.gate_inputs; i++) sum += b.gate[head * b.gate_inputs + i] * x[i];
    const float e = exponential(-std::abs(sum));  // of sigmoid(|x|) = 1 / (1 + e)
    return 3 * (sum > 0 ? 1 : e) / (1 + e);
}

// Keys and values (blocks, texts, heads, positions, channels) of the earlier tokens
template <class T>
struct Cache {
    T *keys, *values;
    const int64_t* lengths;  // how many positions each text has
    int64_t block, text, head, position;  // strides

    int64_t at(int64_t t, int64_t h, int64_t p) const { return t * text + h * head + p * position; }
};

// Angles (texts, tokens, channels) of rotary positions
struct Angles {
    const float *cos, *sin;  // or null
    int64_t text;            // stride; 0: all texts have the same angles
};

// One head of one row, the number of keys that it sees, and where in the cache they begin
struct Query {
    int64_t row, head, seen, at;
};

// x (texts, tokens, D) -> y of the same shape. Each token sees the tokens of its text up to itself.
// own: for blocks with a gate the value embeddings (texts, tokens, kv_heads, channels), else null.
template <class T>
void step(const Block* blocks, int count, const T* x, const T* own, T* y, int64_t texts,
          int64_t tokens, const Cache<T>& cache, const Angles& angles, int threads) {
    const int64_t D = blocks->qkv.k, inner = blocks->out.k, wide = blocks->up.n;
    const int64_t width = blocks->qkv.n, channels = blocks->channels, parts = width / channels;
    const int64_t group = blocks->heads / blocks->kv_heads, rows = texts * tokens;
    const int64_t most = std::max({D, inner, wide});
    const int64_t longest = *std::max_element(cache.lengths, cache.lengths + texts) + tokens;
    const auto attend = attend_head_of<float, T>(channels);
    std::vector<float> stream(x, x + rows * D), qkv(rows * width), hidden(rows * wide);
    std::vector<float> heads(rows * inner);
    static thread_local Input mine;  // kept between calls, as allocating memory takes time
    Input& shared = mine;
    shared.make_room(rows, most);
#pragma omp parallel num_threads(threads)
    {
        const Thread self;
        const UsesTiles tiles;
        std::vector<float> head(channels), weights(longest), normed(own ? D : 0);
        if (rows == 1) mine.make_room(1, most);
        Input& in = rows == 1 ? mine : shared;
        const auto normalised = [&](const Block& b, const Matrix& m, const Norm& norm) {
            in.prepare<T>(m, rows, [&](int64_t r, float* to) {
                normalise(&stream[r * D], to, D, b.rms, 1e-5f, norm);
            });
        };
        const auto turned = [&](const Block& b, int64_t r, int64_t part, float* to) {
            const int64_t at = r / tokens * angles.text + r % tokens * channels;
            const float* from = &qkv[(r * parts + part) * channels];
            place(b, from, to, angles.cos ? angles.cos + at : nullptr, angles.sin + at);
        };
        const auto position = [&](int64_t r) { return cache.lengths[r / tokens] + r % tokens; };
        const auto add = [&](int64_t r, int64_t i, float z) { stream[r * D + i] += z; };

        for (int i = 0; i < count; i++) {
            const Block& b = blocks[i];
            T *K = cache.keys + i * cache.block, *V = cache.values + i * cache.block;

            normalised(b, b.qkv, b.first);
            multiply<T>(self, b.qkv, &b.out, in, rows,
                        [&](int64_t r, int64_t c, float z) { qkv[r * width + c] = z; });
#pragma omp barrier
            for (int64_t i = self.begin(rows * b.kv_heads); i < self.end(rows * b.kv_heads); i++) {
                const int64_t r = i / b.kv_heads, h = i % b.kv_heads;
                const int64_t at = cache.at(r / tokens, h, position(r));
                float* value = &qkv[(r * parts + b.heads + b.kv_heads + h) * channels];
                if (own && b.gate) {
                    normalise(&stream[r * D], normed.data(), D, b.rms, 1e-5f, b.first);
                    const float share = share_of(b, normed.data(), h);
                    for (int64_t c = 0; c < channels; c++) value[c] += share * own[i * channels + c];
                }
                turned(b, r, b.heads + h, head.data());
                for (int64_t c = 0; c < channels; c++) {
                    K[at + c] = head[c];
                    V[at + c] = value[c];
                }
            }
#pragma omp barrier
            // Head by head: the tokens of a text, which see the same keys, follow each other
            const auto query_of = [&](int64_t i) -> Query {
                const int64_t text = i / tokens / b.heads, h = i / tokens % b.heads;
                const int64_t row = text * tokens + i % tokens, end = position(row) + 1;
                const int64_t first = b.window ? std::max<int64_t>(0, end - b.window) : 0;
                return {row, h, end - first, cache.at(text, h / group, first)};
            };
            const int64_t queries = rows * b.heads;
            for (int64_t i = self.begin(queries); i < self.end(queries); i++) {
                const Query now = query_of(i), next = query_of(std::min(i + 1, queries - 1));
                turned(b, now.row, now.head, head.data());
                attend(head.data(), K + now.at, V + now.at, K + next.at, nullptr,
                       &heads[(now.row * b.heads + now.head) * channels], now.seen,
                       cache.position, b.scale, weights.data());
            }
#pragma omp barrier
            in.prepare<T>(b.out, rows, [&](int64_t r, float* to) {
                std::copy_n(&heads[r * inner], inner, to);
            });
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

// The number of an activation; -1 for an unknown name
extern "C" int32_t block_activation(const char* name) {
    for (const auto& [known, number] : ACTIVATIONS)
        if (!std::strcmp(known, name)) return number;
    return -1;
}

#define EXPORT(T)                                                                                 \
    extern "C" void block_##T(const Block* blocks, int count, const T* x, const T* own, T* y,     \
                              int64_t texts, int64_t tokens, T* keys, T* values,                  \
                              const int64_t* lengths, int64_t block, int64_t text, int64_t head,  \
                              int64_t position, const float* cos, const float* sin, int64_t turn, \
                              int threads) {                                                      \
        const Cache<T> cache{keys, values, lengths, block, text, head, position};                 \
        step(blocks, count, x, own, y, texts, tokens, cache, {cos, sin, turn}, threads);          \
    }
EXPORT(float32)
EXPORT(bfloat16)
