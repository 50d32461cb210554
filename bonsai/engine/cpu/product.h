// The product of some rows with a matrix of weights. Each thread computes a part of the outputs.

#pragma once

#include <omp.h>

#include <vector>

#include "kernels.h"
#include "tiles.h"

struct Matrix {  // (n, k); int8 with a scale per output, or of the activations' type with no scale
    const void* weight;
    const float *scale, *bias;  // or null
    int64_t n, k;
};

struct Thread {
    int64_t id = omp_get_thread_num(), count = omp_get_num_threads();

    // where this thread's part of `items` begins and ends
    int64_t begin(int64_t items) const { return items * id / count; }
    int64_t end(int64_t items) const { return items * (id + 1) / count; }
};

const int64_t FEW_TILED = 4;  // the fewest rows for which tiles are faster

// Whether the product of m with so many rows uses tiles, which weights of 8 or 16 bits can
template <class T>
bool tiled(const Matrix& m, int64_t rows) {
    const int64_t bytes = m.k * (m.scale ? 1 : sizeof(T));
    return has_tiles() && rows >= FEW_TILED && (m.scale || sizeof(T) == 2) &&
           bytes % sizeof(Line) == 0;
}

// The rows x of a product, in the forms that the different products read
struct Input {
    std::vector<float> x, step;
    std::vector<int16_t> rounded;  // for weights of 8 bits: x is about step * rounded
    std::vector<Line> lines;       // for tiles, see `pack`

    void make_room(int64_t rows, int64_t k) {
        const int64_t groups = (rows + TILE - 1) / TILE;
        x.resize(std::max<size_t>(x.size(), rows * k));
        step.resize(std::max<size_t>(step.size(), rows));
        rounded.resize(x.size());
        const size_t most = has_tiles() ? groups * (k / 32 + 1) * 2 * TILE : 0;
        lines.resize(std::max(lines.size(), most));
    }

    // Prepares the rows for a product with m. fill(row, place) writes the k numbers of a row. The
    // threads share the rows and wait for each other; but if there is only one row, every thread
    // prepares it in an Input of its own.
    template <class T, class Fill>
    void prepare(const Matrix& m, int64_t rows, Fill fill) {
        const Thread self = rows > 1 ? Thread() : Thread{0, 1};
        for (int64_t r = self.begin(rows); r < self.end(rows); r++) {
            fill(r, &x[r * m.k]);
            if (m.scale) step[r] = round_row(&x[r * m.k], &rounded[r * m.k], m.k);
        }
        wait(rows);
        if (!tiled<T>(m, rows)) return;
        const int64_t wide = m.scale ? 64 : 32, blocks = m.k / wide;  // wide: inputs in a line
        const int64_t all = (rows + TILE - 1) / TILE * blocks;
        for (int64_t i = self.begin(all); i < self.end(all); i++) {
            const int64_t row = i / blocks * TILE, at = row * m.k + i % blocks * wide;
            Line* to = &lines[i * 2 * TILE];
            if (m.scale)
                pack<int8_t>(&rounded[at], rows - row, m.k, to);
            else
                pack<bfloat16>(&x[at], rows - row, m.k, to);
        }
        wait(rows);
    }

    static void wait(int64_t rows) {
        if (rows == 1) return;
#pragma omp barrier
    }
};

// The products of weights w, of up to 16 outputs, with rows x; with tiles if there are lines. Calls
// put(output, row, sum)
template <class W, class X, class Put>
void products(int outputs, const W* w, const W* soon, const X* x, const Line* lines, int64_t rows,
              int64_t k, Put put) {
    if (!lines || outputs < TILE) {
        for (int j = 0; j < outputs; j += 2)
            dots(std::min(2, outputs - j), w + j * k, soon + j * k, x, rows, k,
                 [&](int i, int64_t r, auto sum) { put(j + i, r, sum); });
        return;
    }
    if constexpr (sizeof(W) < 4) {
        typedef std::conditional_t<sizeof(W) == 1, int32_t, float> Sum;
        typedef std::conditional_t<sizeof(W) == 1, uint32_t, float> Part;  // parts may overflow
        const int64_t blocks = k * sizeof(W) / sizeof(Line);
        alignas(64) Part sums[2][2][TILE * TILE];
        for (int64_t row = 0; row < rows; row += 2 * TILE) {
            const int groups = rows - row > TILE ? 2 : 1;
            tile_sums(groups, w, soon, lines + row / TILE * blocks * 2 * TILE, blocks, sums[0][0]);
            for (int g = 0; g < groups; g++) {
                auto& [upper, lower] = sums[g];
                for (int i = 0; i < TILE * TILE; i++)
                    upper[i] = (sizeof(W) == 1 ? 256 : 1) * upper[i] + lower[i];
                transpose((ints*)upper);
                const int64_t begin = row + g * TILE, end = std::min(begin + TILE, rows);
                for (int64_t r = begin; r < end; r++)
                    for (int j = 0; j < TILE; j++) put(j, r, Sum(upper[(r - begin) * TILE + j]));
            }
        }
    }
}

// A thread's part of the product of m with the rows of `in`. Calls store(row, output, number). Near
// its end it prefetches the beginning of its part of `next`, the matrix of the next product.
template <class T, class Store>
void multiply(const Thread& self, const Matrix& m, const Matrix* next, const Input& in,
              int64_t rows, Store store) {
    const int64_t bytes = m.k * (m.scale ? 1 : sizeof(T));  // bytes of one output's weights
    const bool tiles = tiled<T>(m, rows);
    const int64_t unit = tiles ? TILE : 2, units = (m.n + unit - 1) / unit;
    const int64_t begin = self.begin(units) * unit, end = std::min(self.end(units) * unit, m.n);
    const char *weight = (const char*)m.weight, *stop = weight + end * bytes, *then = stop;
    if (next) {
        const int64_t unit = tiled<T>(*next, rows) ? TILE : 2, units = (next->n + unit - 1) / unit;
        then = (const char*)next->weight +
               self.begin(units) * unit * next->k * (next->scale ? 1 : sizeof(T));
    }
    for (int64_t i = begin; i < end; i += unit) {
        const char *w = weight + i * bytes, *soon = w + (tiles ? TILE * bytes : AHEAD);
        if (soon >= stop) soon = then + (soon - stop);
        const auto put = [&](int j, int64_t r, auto sum) {
            const float y = m.scale ? sum * (m.scale[i + j] * in.step[r]) : sum;
            store(r, i + j, y + (m.bias ? m.bias[i + j] : 0));
        };
        const int outputs = std::min(unit, end - i);
        const Line* lines = tiles ? in.lines.data() : nullptr;
        if (m.scale)
            products(outputs, (int8_t*)w, (int8_t*)soon, in.rounded.data(), lines, rows, m.k, put);
        else
            products(outputs, (T*)w, (T*)soon, in.x.data(), lines, rows, m.k, put);
    }
}
