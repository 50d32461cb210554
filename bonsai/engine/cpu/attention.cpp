// softmax(scale q K^T) V for one query per row and head: the attention of a one-token step.
//
// Each row reads only the keys that it sees; they are prefetched while the head before is computed.
// A row's result does not depend on the other rows. Sums are float32 for any dtype.

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace {

// q, y (rows, heads, channels), with stride `q_row` between the rows of q; k, v (rows, kv_heads,
// keys, channels) with strides `row`, `head` and `key`; seen (rows, keys) or null
template <class T>
void attend(const T* q, const T* k, const T* v, const uint8_t* seen, T* y, int64_t rows,
            int64_t heads, int64_t kv_heads, int64_t keys, int64_t channels, int64_t q_row,
            int64_t row, int64_t head, int64_t key, int64_t seen_row, float scale, int threads) {
    const auto run = attend_head_of<T, T>(channels);
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
