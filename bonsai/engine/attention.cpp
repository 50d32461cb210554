// softmax(scale q K^T) V for one query per row and head: the attention of a one-token step.
//
// Each row reads only what it sees, fetched into the cache while the loop before it computes, and
// its result does not depend on its neighbours. The sums are float32, whatever the numbers are.

#include <algorithm>
#include <limits>
#include <vector>

#include "numbers.h"

namespace {

const int LANES = 16;
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

template <class Vector, class T>
Vector read(const T* x) {
    Vector y;
    std::memcpy(&y, x, sizeof y);
    return y;
}

inline floats load(const float* x) { return read<floats>(x); }

inline floats load(const bfloat16* x) {
    return (floats)(__builtin_convertvector(read<halves>(x), words) << 16);
}

inline float sum(const floats& x) {  // in halves: a loop over the lanes takes twice as long
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    const float* lanes = (const float*)&x;
    const eight e = read<eight>(lanes) + read<eight>(lanes + 8);
    lanes = (const float*)&e;
    const four f = read<four>(lanes) + read<four>(lanes + 4);
    return (f[0] + f[2]) + (f[1] + f[3]);
}

// e^x for x <= 0 to 3e-7 of itself: 2^n times a Taylor polynomial, of which vectors are made
inline float exponential(float x) {
    const float t = std::max(x * 1.44269504f, -126.0f), n = std::nearbyint(t), f = t - n;
    const float taylor[] = {1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f,
                            2.40226507e-1f, 6.93147181e-1f, 1.0f};
    float p = 0;
    for (float c : taylor) p = p * f + c;
    return p * as<float>((int32_t(n) + 127) << 23);
}

template <class T>
void prefetch(const T* x, int count) {
    for (int i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(x + i, 0, 2);
}

// One head of N * LANES channels. K, V: (keys, channels), rows `stride` apart; K_next: what will be
// read next; see (keys) or null; weight: room for `keys` numbers.
template <int N, class T>
void one(const T* q, const T* K, const T* V, const T* K_next, const uint8_t* see, T* y,
         int64_t keys, int64_t stride, float scale, float* weight) {
    floats query[N], out[N] = {};
    for (int i = 0; i < N; i++) query[i] = load(q + i * LANES) * scale;
    for (int64_t s = 0; s < keys; s++) {
        prefetch(V + s * stride, N * LANES);
        floats score = load(K + s * stride) * query[0];
        for (int i = 1; i < N; i++) score += load(K + s * stride + i * LANES) * query[i];
        weight[s] = sum(score);
    }
    const float hidden = -std::numeric_limits<float>::infinity();
    float top = hidden, total = 0;
    for (int64_t s = 0; see && s < keys; s++) weight[s] = see[s] ? weight[s] : hidden;
    for (int64_t s = 0; s < keys; s++) top = std::max(top, weight[s]);
#pragma omp simd reduction(+ : total)
    for (int64_t s = 0; s < keys; s++) total += weight[s] = exponential(weight[s] - top);
    for (int64_t s = 0; s < keys; s++) {
        prefetch(K_next + s * stride, N * LANES);
        for (int i = 0; i < N; i++) out[i] += load(V + s * stride + i * LANES) * weight[s];
    }
    for (int j = 0; j < N * LANES; j++) y[j] = out[j / LANES][j % LANES] / total;
}

// q, y (rows, heads, channels), rows of q `q_row` apart; k, v (rows, kv_heads, keys, channels),
// rows, heads and keys `row`, `head` and `key` apart; seen (rows, keys) or null
template <class T>
void attend(const T* q, const T* k, const T* v, const uint8_t* seen, T* y, int64_t rows,
            int64_t heads, int64_t kv_heads, int64_t keys, int64_t channels, int64_t q_row,
            int64_t row, int64_t head, int64_t key, int64_t seen_row, float scale, int threads) {
    const auto run = channels == 32 ? one<2, T> : channels == 64 ? one<4, T> : one<8, T>;
    const int64_t tasks = rows * heads, group = heads / kv_heads;
    const auto place = [=](int64_t t) { return t / heads * row + t % heads / group * head; };
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> weight(keys);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tasks; t++) {
            const uint8_t* see = seen ? seen + t / heads * seen_row : nullptr;
            int64_t begin = 0, end = keys;
            while (see && begin < end - 1 && !see[begin]) begin++;
            while (see && begin < end - 1 && !see[end - 1]) end--;
            const int64_t at = place(t) + begin * key;
            const int64_t next = place(std::min(t + 1, tasks - 1)) + begin * key;
            run(q + t / heads * q_row + t % heads * channels, k + at, v + at, k + next,
                see ? see + begin : nullptr, y + t * channels, end - begin, key, scale,
                weight.data());
        }
    }
}

}  // namespace

#define EXPORT(T)                                                                                 \
    extern "C" void attention_##T(const T* q, const T* k, const T* v, const uint8_t* seen, T* y,  \
                               int64_t rows, int64_t heads, int64_t kv_heads, int64_t keys,       \
                               int64_t channels, int64_t q_row, int64_t row, int64_t head,        \
                               int64_t key, int64_t seen_row, float scale, int threads) {         \
        attend(q, k, v, seen, y, rows, heads, kv_heads, keys, channels, q_row, row, head, key,    \
               seen_row, scale, threads);                                                         \
    }
EXPORT(float32)
EXPORT(bfloat16)
