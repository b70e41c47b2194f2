/* The two loops that torch has no fast operation for, in plain C with the vectors of GCC and Clang; bslib/speed.py calls them.

   All tensors are float32 and channels-last: (images, rows, columns, channels). Channels come in multiples of 16. */
#include <string.h>

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int bits __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
static inline vec choose(bits where, vec a, vec b) { return (vec)(((bits)a & where) | ((bits)b & ~where)); }
/* As torch has them: what is not a number stays so. */
static inline vec larger(vec a, vec b) { return choose((bits)(a > b) | (bits)(a != a), a, b); }
static inline vec relu(vec a) { return (vec)((bits)a & ~(bits)(a < 0)); }

/* A convolution of stride 1, the maximum over 2 x 2 and, where asked for, a ReLU, without the four times larger result between.
   x (n, c, h, w), channels first, c small; weight (c * kh * kw, o); y (n, ph, pw, o); o is a multiple of 32. */
void pooled_convolution(const float *x, const float *weight, const float *bias, float *y, long n, long c, long h, long w,
                        long kh, long kw, long o, long ph, long pw, long clip, long threads) {
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
    for (long image = 0; image < n; image++)
        for (long i = 0; i < ph; i++)
            for (long j = 0; j < pw; j++)
                for (long k = 0; k < o; k += 2 * LANES) {
                    vec first[4] = {0}, second[4] = {0};
                    const float *at = weight + k;
                    for (long channel = 0; channel < c; channel++)
                        for (long u = 0; u < kh; u++) {
                            const float *upper = x + ((image * c + channel) * h + 2 * i + u) * w + 2 * j, *lower = upper + w;
                            for (long v = 0; v < kw; v++, at += o) {
                                vec a = load(at), b = load(at + LANES);
                                first[0] += a * upper[v], second[0] += b * upper[v];
                                first[1] += a * upper[v + 1], second[1] += b * upper[v + 1];
                                first[2] += a * lower[v], second[2] += b * lower[v];
                                first[3] += a * lower[v + 1], second[3] += b * lower[v + 1];
                            }
                        }
                    vec a = larger(larger(first[0], first[1]), larger(first[2], first[3])) + load(bias + k);
                    vec b = larger(larger(second[0], second[1]), larger(second[2], second[3])) + load(bias + k + LANES);
                    float *to = y + ((image * ph + i) * pw + j) * o + k;
                    store(to, clip ? relu(a) : a);
                    store(to + LANES, clip ? relu(b) : b);
                }
}

/* Winograd's F(4 x 4, 3 x 3) in the notation of Lavin and Gray (2016): a tile of 6 x 6 inputs gives 4 x 4 outputs by 36 products
   for each pair of channels, where the direct way takes 144. B^T d B and A^T m A, for tiles number `from` to `to`; tiles are
   counted over rows and columns of `down` x `across` tiles of all images. */
static inline void before(const vec d[6], vec e[6]) {
    vec p = d[4] - 4 * d[2], q = d[3] - 4 * d[1], r = d[4] - d[2], s = 2 * (d[3] - d[1]);
    e[0] = 4 * d[0] - 5 * d[2] + d[4];
    e[1] = p + q, e[2] = p - q, e[3] = r + s, e[4] = r - s;
    e[5] = 4 * d[1] - 5 * d[3] + d[5];
}

static inline void after(const vec d[6], vec e[4]) {
    vec p = d[1] + d[2], q = d[1] - d[2], r = d[3] + d[4], s = d[3] - d[4];
    e[0] = d[0] + p + r, e[1] = q + 2 * s, e[2] = p + 4 * r, e[3] = q + 8 * s + d[5];
}

/* x (n, h, w, c) -> v, 36 planes of (tiles, c), so many floats apart. */
void winograd_before(const float *x, float *v, long from, long to, long plane, long h, long w, long c, long padding, long down,
                     long across, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long t = from; t < to; t++) {
        long image = t / (down * across), top = t / across % down * 4 - padding, left = t % across * 4 - padding;
        for (long k = 0; k < c; k += LANES) {
            vec e[6][6];
            for (long j = 0; j < 6; j++) {
                vec d[6], column[6];
                for (long i = 0; i < 6; i++) {
                    long row = top + i, at = left + j;
                    int inside = row >= 0 && row < h && at >= 0 && at < w;
                    d[i] = inside ? load(x + ((image * h + row) * w + at) * c + k) : (vec){0};
                }
                before(d, column);
                for (long i = 0; i < 6; i++) e[i][j] = column[i];
            }
            for (long i = 0; i < 6; i++) {
                vec row[6];
                before(e[i], row);
                for (long j = 0; j < 6; j++) store(v + (6 * i + j) * plane + (t - from) * c + k, row[j]);
            }
        }
    }
}

/* m, 36 planes of (tiles, o) -> y (n, h, w, o), with the bias and, where asked for, a ReLU. */
void winograd_after(const float *m, const float *bias, float *y, long from, long to, long plane, long h, long w, long o,
                    long down, long across, long clip, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long t = from; t < to; t++) {
        long image = t / (down * across), top = t / across % down * 4, left = t % across * 4;
        for (long k = 0; k < o; k += LANES) {
            vec e[4][6];
            for (long j = 0; j < 6; j++) {
                vec d[6], column[4];
                for (long i = 0; i < 6; i++) d[i] = load(m + (6 * i + j) * plane + (t - from) * o + k);
                after(d, column);
                for (long i = 0; i < 4; i++) e[i][j] = column[i];
            }
            for (long i = 0; i < 4 && top + i < h; i++) {
                vec row[4];
                after(e[i], row);
                for (long j = 0; j < 4 && left + j < w; j++) {
                    vec sum = row[j] + load(bias + k);
                    store(y + ((image * h + top + i) * w + left + j) * o + k, clip ? relu(sum) : sum);
                }
            }
        }
    }
}
