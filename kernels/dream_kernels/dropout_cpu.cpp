// y = x / (1 - p) or, with probability p, 0. Which it is depends on the seed and the place in
// memory alone: the backward asks again instead of keeping a mask, and any number of threads gives
// the same.
//
//     words = Philox-4x32-10(counter = (number of the run of CHUNK values, lane, 0, 0), key = seed)
//     a value is kept if its 16 bits of them, as a number, are not below threshold = round(2^16 p)
//
// Philox: Salmon et al., SC 2011; tests/kernels/test_dropout.py has it in torch.
//
// Vectors are GCC's vector extension (also Clang's). Little-endian.

#include <cstdint>
#include <cstring>

// a call of Philox gives 4 words of 32 bits: decides 8 values
constexpr int LANES = 8, CHUNK = LANES * 8;
// each holds 32 bits: room for products
using Longs = uint64_t __attribute__((vector_size(8 * LANES)));
constexpr uint64_t LOW = 0xffffffff;

// bits[(4 lane + word) * 2 + half]
static void random_bits(uint64_t number, uint64_t seed, uint16_t bits[CHUNK]) {
    const Longs lane = {0, 1, 2, 3, 4, 5, 6, 7};
    Longs c0 = Longs{} + (number & LOW), c1 = Longs{} + (number >> 32), c2 = lane, c3 = {};
    uint64_t k0 = seed & LOW, k1 = seed >> 32;
    for (int round = 0; round < 10; round++) {
        const Longs p0 = c0 * 0xD2511F53, p1 = c2 * 0xCD9E8D57;
        c0 = (p1 >> 32) ^ c1 ^ k0;
        c2 = (p0 >> 32) ^ c3 ^ k1;
        c1 = p1 & LOW;
        c3 = p0 & LOW;
        k0 = (k0 + 0x9E3779B9) & LOW;
        k1 = (k1 + 0xBB67AE85) & LOW;
    }
    const Longs words[2] = {c0 | c1 << 32, c2 | c3 << 32};
    memcpy(bits, words, sizeof words);
}

static float widened(float x) { return x; }
static float widened(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y; memcpy(&y, &bits, sizeof y);
    return y;
}
static void put(float *to, float x) { *to = x; }
static void put(uint16_t *to, float x) {  // to the nearest bfloat16, ties to even
    uint32_t bits; memcpy(&bits, &x, sizeof bits);
    *to = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <class T>
static void some(const T *x, T *y, int count, const uint16_t *bits, uint32_t threshold,
                 float factor) {
    for (int i = 0; i < count; i++)
        put(y + i, bits[i] >= threshold ? widened(x[i]) * factor : 0.0f);
}

template <class T>
static void dropout(const T *x, T *y, long count, uint64_t seed, uint32_t threshold, long threads) {
    const float factor = 65536.0f / (65536 - threshold);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long number = 0; number < (count + CHUNK - 1) / CHUNK; number++) {
        const long at = number * CHUNK;
        uint16_t bits[CHUNK];
        random_bits(number, seed, bits);
        if (at + CHUNK <= count)  // a constant count makes vectors of it
            some(x + at, y + at, CHUNK, bits, threshold, factor);
        else
            some(x + at, y + at, count - at, bits, threshold, factor);
    }
}

extern "C" void dropout_float32(const float *x, float *y, long count, long seed, long threshold,
                                long threads) {
    dropout(x, y, count, seed, threshold, threads);
}

extern "C" void dropout_bfloat16(const uint16_t *x, uint16_t *y, long count, long seed,
                                 long threshold, long threads) {
    dropout(x, y, count, seed, threshold, threads);
}
