// group_norm_silu of channels_last features on a CPU, forward and backward; the mathematics stand
// in group_norm_silu.py.
//
// x is [B,P,C] in memory: samples, positions, channels. Threads share the positions of one sample
// after the other, so that what a thread read for its sums is in its cache when it comes to apply
// them. Within its share it goes by tiles of a few KB, and in those by blocks of 32 channels, whose
// coefficients stay in registers. Sums are those of tiles, joined in one order: two runs with as
// many threads agree.
//
// Vectors are GCC's vector extension (also Clang's), no instruction set is named. C is a multiple
// of BLOCK; bytes little-endian.

#include <cmath>
#include <cstdint>
#include <cstring>

#include <omp.h>

constexpr int LANES = 16, BLOCK = 2 * LANES;
constexpr long TILE_BYTES = 16384;
using Floats = float __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Bfloat16 = uint16_t;

// A block of channels as two vectors: of floats the first and the last 16, of bfloat16 the even and
// the odd ones, which need no shuffle to become floats. Arrays of coefficients and sums are kept in
// that order: channel c of the block stands at place(c).
struct Block { Floats first, second; };
template <class T> long place(long c);
template <> long place<float>(long c) { return c; }
template <> long place<Bfloat16>(long c) {
    return (c & -BLOCK) + (c & 1) * LANES + (c & (BLOCK - 1)) / 2;
}

#define ELEMENTWISE(OP)                                    \
    static Block operator OP(Block x, Block y) {           \
        return {x.first OP y.first, x.second OP y.second}; \
    }
ELEMENTWISE(+)
ELEMENTWISE(-)
ELEMENTWISE(*)
static Block operator*(Block x, float y) { return {x.first * y, x.second * y}; }
static Block &operator+=(Block &x, Block y) { return x = x + y; }

static Block load(const float *p) { Block x; memcpy(&x, p, sizeof x); return x; }
static void store(float *p, Block x) { memcpy(p, &x, sizeof x); }

static Block load(const Bfloat16 *p) {
    Words pairs; memcpy(&pairs, p, sizeof pairs);
    return {(Floats)(pairs << 16), (Floats)(pairs & 0xffff0000)};
}

// to the nearest bfloat16, ties to even; its 16 bits are the upper ones
static Words rounded(Floats x) {
    const Words bits = (Words)x;
    return bits + 0x7fff + (bits >> 16 & 1);
}
static void store(Bfloat16 *p, Block x) {
    Words pairs = rounded(x.first) >> 16 | (rounded(x.second) & 0xffff0000);
    memcpy(p, &pairs, sizeof pairs);
}

// 1 / (1 + exp(-z)): exp(r + n ln 2) = 2^n exp(r), with the minimax polynomial of Cephes' expf for
// |r| <= ln 2 / 2
static Floats sigmoid(Floats z) {
    const Floats most = Floats{} + 87.0f;
    Floats x = -z;
    x = x > most ? most : x < -most ? -most : x;
    Floats n = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: no bits are left for a fraction
    const Ints exponent = (Ints)n << 23;
    n -= 12582912.0f;
    const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return 1.0f / (1.0f + (Floats)((Ints)p + exponent));
}

static Floats slope(Floats z) { const Floats s = sigmoid(z); return s * (1.0f + z * (1.0f - s)); }
static Block activate(Block z, bool silu) {
    return silu ? z * Block{sigmoid(z.first), sigmoid(z.second)} : z;
}
static Block gradient_of_z(Block dy, Block z, bool silu) {
    return silu ? dy * Block{slope(z.first), slope(z.second)} : dy;
}

struct Shape {
    long samples, positions, channels, groups, threads;
    long first(long thread) const { return positions * thread / threads; }
    double share(long thread) const { return first(thread + 1) - first(thread); }
    long of_group() const { return channels / groups; }
    template <class T> long tile() const { return TILE_BYTES / (long)sizeof(T) / channels + 4; }
};

// body(first, end, channel) for every tile and block of channels in a thread's share
template <class T, class Body> static void tiles(const Shape &shape, long thread, Body body) {
    const long last = shape.first(thread + 1), step = shape.tile<T>();
    for (long first = shape.first(thread); first < last; first += step) {
        const long end = first + step < last ? first + step : last;
        for (long c = 0; c < shape.channels; c += BLOCK) body(first, end, c);
    }
}

// mean of each channel over a thread's share, and the sum of squared distances from it: in two
// passes over a tile, tiles joined by Chan's formula
template <class T>
static void statistics(const T *x, const Shape &shape, long thread, float *mean, float *square) {
    const long C = shape.channels, begin = shape.first(thread);
    memset(mean, 0, C * sizeof *mean);
    memset(square, 0, C * sizeof *square);
    tiles<T>(shape, thread, [&](long first, long end, long c) {
        const float here = end - first, before = first - begin;
        const Block m = load(mean + c), q = load(square + c);
        Block sum{}, tile_square{};
        for (long p = first; p < end; p++) sum += load(x + p * C + c);
        const Block tile_mean = sum * (1 / here);
        for (long p = first; p < end; p++) {
            const Block distance = load(x + p * C + c) - tile_mean;
            tile_square += distance * distance;
        }
        const Block step = tile_mean - m;
        store(square + c, q + tile_square + step * step * (before * (here / (before + here))));
        store(mean + c, m + step * (here / (before + here)));
    });
}

// weight, bias [B,C] -> y, mean and rstd [B,G]. scratch: 2 C floats a thread and 3 C
template <class T>
static void forward(const T *x, const float *weight, const float *bias, T *y, float *mean,
                    float *rstd, float *scratch, Shape shape, double eps, bool silu) {
    const long C = shape.channels, D = shape.of_group(), size = shape.positions * C;
    float *a = scratch, *k = a + C, *m = k + C, *sums = m + C;
#pragma omp parallel num_threads(shape.threads) firstprivate(shape)
    {
        const long thread = omp_get_thread_num();
        shape.threads = omp_get_num_threads();
        for (long b = 0; b < shape.samples; b++) {
            float *own = sums + 2 * thread * C;
            statistics(x + b * size, shape, thread, own, own + C);
#pragma omp barrier
#pragma omp for
            for (long g = 0; g < shape.groups; g++) {
                double joined = 0, square = 0;
                for (long t = 0; t < shape.threads; t++)
                    for (long c = g * D; c < g * D + D; c++)
                        joined += shape.share(t) * sums[2 * t * C + place<T>(c)];
                joined /= shape.positions * D;
                for (long t = 0; t < shape.threads; t++)
                    for (long c = g * D; c < g * D + D; c++) {
                        const double step = sums[2 * t * C + place<T>(c)] - joined;
                        square +=
                            sums[(2 * t + 1) * C + place<T>(c)] + step * step * shape.share(t);
                    }
                const float r = 1 / std::sqrt(square / (shape.positions * D) + eps);
                for (long c = g * D; c < g * D + D; c++) {
                    const long at = place<T>(c);
                    a[at] = r * weight[b * C + c], k[at] = bias[b * C + c], m[at] = joined;
                }
                mean[b * shape.groups + g] = joined, rstd[b * shape.groups + g] = r;
            }
            tiles<T>(shape, thread, [&](long first, long end, long c) {
                const T *from = x + b * size + c;
                T *to = y + b * size + c;
                const Block ac = load(a + c), kc = load(k + c), mc = load(m + c);
                for (long p = first; p < end; p++)
                    store(to + p * C, activate((load(from + p * C) - mc) * ac + kc, silu));
            });
        }
    }
}

// -> dx, dweight and dbias [B,C]. scratch: 2 C floats a thread and 6 C
template <class T>
static void backward(const T *dy, const T *x, const float *weight, const float *bias,
                     const float *mean, const float *rstd, T *dx, float *dweight, float *dbias,
                     float *scratch, Shape shape, bool silu) {
    const long C = shape.channels, D = shape.of_group(), size = shape.positions * C;
    float *w = scratch, *k = w + C, *m = k + C, *r = m + C;
    float *mean_w = r + C, *mean_b = mean_w + C, *sums = mean_b + C;
#pragma omp parallel num_threads(shape.threads) firstprivate(shape)
    {
        const long thread = omp_get_thread_num();
        shape.threads = omp_get_num_threads();
        float *sum_w = sums + 2 * thread * C, *sum_b = sum_w + C;
        for (long b = 0; b < shape.samples; b++) {
#pragma omp for
            for (long g = 0; g < shape.groups; g++)
                for (long c = g * D; c < g * D + D; c++) {
                    const long at = place<T>(c);
                    w[at] = weight[b * C + c], k[at] = bias[b * C + c];
                    m[at] = mean[b * shape.groups + g], r[at] = rstd[b * shape.groups + g];
                }
            memset(sum_w, 0, 2 * C * sizeof *sum_w);
            tiles<T>(shape, thread, [&](long first, long end, long c) {
                const T *of_x = x + b * size + c, *of_dy = dy + b * size + c;
                const Block wc = load(w + c), kc = load(k + c), mc = load(m + c), rc = load(r + c);
                Block tile_w{}, tile_b{};
                for (long p = first; p < end; p++) {
                    const Block x_hat = (load(of_x + p * C) - mc) * rc;
                    const Block dz = gradient_of_z(load(of_dy + p * C), x_hat * wc + kc, silu);
                    tile_w += dz * x_hat;
                    tile_b += dz;
                }
                store(sum_w + c, load(sum_w + c) + tile_w);
                store(sum_b + c, load(sum_b + c) + tile_b);
            });
#pragma omp barrier
#pragma omp for
            for (long g = 0; g < shape.groups; g++) {
                double group_w = 0, group_b = 0;
                for (long c = g * D; c < g * D + D; c++) {
                    double all_w = 0, all_b = 0;
                    for (long t = 0; t < shape.threads; t++) {
                        all_w += sums[2 * t * C + place<T>(c)];
                        all_b += sums[(2 * t + 1) * C + place<T>(c)];
                    }
                    dweight[b * C + c] = all_w, dbias[b * C + c] = all_b;
                    group_w += weight[b * C + c] * all_w, group_b += weight[b * C + c] * all_b;
                }
                for (long c = g * D; c < g * D + D; c++) {
                    mean_w[place<T>(c)] = group_w / (shape.positions * D);
                    mean_b[place<T>(c)] = group_b / (shape.positions * D);
                }
            }
            tiles<T>(shape, thread, [&](long first, long end, long c) {
                const T *of_x = x + b * size + c, *of_dy = dy + b * size + c;
                T *to = dx + b * size + c;
                const Block wc = load(w + c), kc = load(k + c), mc = load(m + c), rc = load(r + c);
                const Block cw = load(mean_w + c), cb = load(mean_b + c);
                for (long p = first; p < end; p++) {
                    const Block x_hat = (load(of_x + p * C) - mc) * rc;
                    const Block dz = gradient_of_z(load(of_dy + p * C), x_hat * wc + kc, silu);
                    store(to + p * C, (wc * dz - cb - x_hat * cw) * rc);
                }
            });
#pragma omp barrier
        }
    }
}

#define EXPORT(NAME, T)                                                                           \
    extern "C" void forward_##NAME(                                                               \
        const T *x, const float *weight, const float *bias, T *y, float *mean, float *rstd,       \
        float *scratch, long samples, long positions, long channels, long groups, long threads,   \
        double eps, long silu) {                                                                  \
        const Shape shape = {samples, positions, channels, groups, threads};                      \
        forward(x, weight, bias, y, mean, rstd, scratch, shape, eps, silu);                       \
    }                                                                                             \
    extern "C" void backward_##NAME(                                                              \
        const T *dy, const T *x, const float *weight, const float *bias, const float *mean,       \
        const float *rstd, T *dx, float *dweight, float *dbias, float *scratch, long samples,     \
        long positions, long channels, long groups, long threads, long silu) {                    \
        const Shape shape = {samples, positions, channels, groups, threads};                      \
        backward(dy, x, weight, bias, mean, rstd, dx, dweight, dbias, scratch, shape, silu);      \
    }

EXPORT(float32, float)
EXPORT(bfloat16, Bfloat16)
