/* Two layers that torch has no fast operation for, there and back, in plain C with the vectors of GCC and Clang; bslib/loops.py
   calls them. All tensors are float32 and, but for the images of the first, channels-last: (images, rows, columns, channels).
   Channels come in multiples of 16, filters in multiples of 32. */
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#define LANES 16
/* Rows of a product that are summed up in registers, two vectors each: 26 of AVX-512's 32; elsewhere a vector takes several. */
#ifdef __AVX512F__
#define ROWS 13
#else
#define ROWS 3
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int bits __attribute__((vector_size(4 * LANES)));
typedef signed char bytes __attribute__((vector_size(LANES)));

#define INLINE static inline __attribute__((always_inline))
static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
static inline vec choose(bits where, vec a, vec b) { return (vec)(((bits)a & where) | ((bits)b & ~where)); }
/* As torch has them: what is not a number stays so. */
static inline vec larger(vec a, vec b) { return choose((bits)(a > b) | (bits)(a != a), a, b); }
static inline vec relu(vec a) { return (vec)((bits)a & ~(bits)(a < 0)); }
static inline vec only(bits where, vec a) { return (vec)((bits)a & where); }

/* Where each maximum of four came from, the first of equals; 4 where a ReLU makes it 0. */
static inline void remember(const vec of[4], vec result, long clip, signed char *to) {
    vec most = of[0];
    bits from = {0};
    for (int place = 1; place < 4; place++) {
        bits where = (bits)(of[place] > most);
        most = choose(where, of[place], most), from = (from & ~where) | (place & where);
    }
    if (clip) from = (from & (bits)(result > 0)) | (4 & ~(bits)(result > 0));
    bytes short_ = __builtin_convertvector(from, bytes);
    memcpy(to, &short_, sizeof short_);
}

/* A convolution of stride 1, the maximum over 2 x 2 and, where asked for, a ReLU, without the four times larger result between.
   x (n, c, h, w), channels first, c small; weight (c * kh * kw, o); y (n, ph, pw, o); o is a multiple of 32. What the way back
   needs, from where the maxima came, goes to `from`, like y, unless that is NULL. Of one image: */
INLINE void pooled(const float *x, const float *weight, const float *bias, float *y, signed char *from, long c, long h, long w,
                   long kh, long kw, long o, long ph, long pw, long clip) {
    for (long i = 0; i < ph; i++)
        for (long j = 0; j < pw; j++)
            for (long k = 0; k < o; k += 2 * LANES) {
                vec first[4] = {0}, second[4] = {0};
                const float *at = weight + k;
                for (long channel = 0; channel < c; channel++)
                    for (long u = 0; u < kh; u++) {
                        const float *upper = x + (channel * h + 2 * i + u) * w + 2 * j, *lower = upper + w;
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
                long to = (i * pw + j) * o + k;
                store(y + to, clip ? relu(a) : a);
                store(y + to + LANES, clip ? relu(b) : b);
                if (from) remember(first, a, clip, from + to), remember(second, b, clip, from + to + LANES);
            }
}

void pooled_convolution(const float *x, const float *weight, const float *bias, float *y, signed char *from, long n, long c,
                        long h, long w, long kh, long kw, long o, long ph, long pw, long clip, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long image = 0; image < n; image++) {
        const float *own = x + image * c * h * w;
        float *to = y + image * ph * pw * o;
        signed char *origin = from ? from + image * ph * pw * o : NULL;
        /* The compiler unrolls loops over numbers that it knows. */
        if (c == 1 && kh == 3 && kw == 3) pooled(own, weight, bias, to, origin, 1, h, w, 3, 3, o, ph, pw, clip);
        else pooled(own, weight, bias, to, origin, c, h, w, kh, kw, o, ph, pw, clip);
    }
}

/* The gradients of its weight (c * kh * kw, o) and bias (o), from that of y and from where the maxima came. Of filters `first` to
   `last`, which are added up in weight and bias themselves: */
INLINE void pooled_back(const float *x, const float *gradient, const signed char *from, float *weight, float *bias, long first,
                        long last, long n, long c, long h, long w, long kh, long kw, long o, long ph, long pw) {
    for (long image = 0; image < n; image++)
        for (long i = 0; i < ph; i++)
            for (long j = 0; j < pw; j++)
                for (long k = first; k < last; k += LANES) {
                    long at = ((image * ph + i) * pw + j) * o + k;
                    bytes short_;
                    memcpy(&short_, from + at, sizeof short_);
                    bits place = __builtin_convertvector(short_, bits);
                    vec g = load(gradient + at), of[4];
                    for (int p = 0; p < 4; p++) of[p] = only((bits)(place == p), g);
                    store(bias + k, load(bias + k) + ((of[0] + of[1]) + (of[2] + of[3])));
                    float *to = weight + k;
                    for (long channel = 0; channel < c; channel++)
                        for (long u = 0; u < kh; u++) {
                            const float *upper = x + ((image * c + channel) * h + 2 * i + u) * w + 2 * j, *lower = upper + w;
                            for (long v = 0; v < kw; v++, to += o) {
                                vec above = of[0] * upper[v] + of[1] * upper[v + 1];
                                store(to, load(to) + above + (of[2] * lower[v] + of[3] * lower[v + 1]));
                            }
                        }
                }
}

void pooled_convolution_back(const float *x, const float *gradient, const signed char *from, float *weight, float *bias, long n,
                             long c, long h, long w, long kh, long kw, long o, long ph, long pw, long threads) {
    memset(weight, 0, c * kh * kw * o * sizeof *weight), memset(bias, 0, o * sizeof *bias);
    long each = (o / LANES + threads - 1) / threads * LANES;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long k = 0; k < o; k += each) {
        long last = k + each < o ? k + each : o;
        if (c == 1 && kh == 3 && kw == 3) pooled_back(x, gradient, from, weight, bias, k, last, n, 1, h, w, 3, 3, o, ph, pw);
        else pooled_back(x, gradient, from, weight, bias, k, last, n, c, h, w, kh, kw, o, ph, pw);
    }
}

/* Winograd's F(4 x 4, 3 x 3) in the notation of Lavin and Gray (2016): a tile of 6 x 6 inputs gives 4 x 4 outputs by 36 products
   for each pair of channels, where the direct way takes 144. A block of tiles goes through B^T d B, 36 products of
   matrices (tiles, channels) x (channels, filters), and A^T m A, in memory that stays in a core's cache. */
typedef struct { long h, w, c, o, padding, height, width, down, across; } layer;

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

/* G and its transpose, on kernels of three. */
static inline void spread(const vec d[3], vec e[6]) {
    vec p = (d[0] + d[2]) / -6, q = d[1] / -6, r = d[0] / 24 + d[2] / 6, s = d[1] / 12;
    e[0] = d[0] / 4, e[1] = p + q, e[2] = p - q, e[3] = r + s, e[4] = r - s, e[5] = d[2];
}

static inline void gather(const vec e[6], vec d[3]) {
    vec p = (e[1] + e[2]) / -6, q = e[3] + e[4];
    d[0] = e[0] / 4 + p + q / 24, d[1] = (e[2] - e[1]) / 6 + (e[3] - e[4]) / 12, d[2] = p + q / 6 + e[5];
}

/* kernels (c, 3, 3, o) -> weight (36, o / 32, c, 32): G g G^T. */
void winograd_weight(const float *kernels, float *weight, long c, long o) {
    for (long channel = 0; channel < c; channel++)
        for (long k = 0; k < o; k += LANES) {
            vec e[6][3];
            for (long j = 0; j < 3; j++) {
                vec d[3], column[6];
                for (long i = 0; i < 3; i++) d[i] = load(kernels + ((channel * 3 + i) * 3 + j) * o + k);
                spread(d, column);
                for (long i = 0; i < 6; i++) e[i][j] = column[i];
            }
            float *to = weight + (k / (2 * LANES) * c + channel) * 2 * LANES + k % (2 * LANES);
            for (long i = 0; i < 6; i++) {
                vec row[6];
                spread(e[i], row);
                for (long j = 0; j < 6; j++) store(to + (6 * i + j) * c * o, row[j]);
            }
        }
}

/* And from the gradient of the one to that of the other. */
void winograd_weight_back(const float *weight, float *kernels, long c, long o) {
    for (long channel = 0; channel < c; channel++)
        for (long k = 0; k < o; k += LANES) {
            const float *from = weight + (k / (2 * LANES) * c + channel) * 2 * LANES + k % (2 * LANES);
            vec d[3][6];
            for (long j = 0; j < 6; j++) {
                vec e[6], column[3];
                for (long i = 0; i < 6; i++) e[i] = load(from + (6 * i + j) * c * o);
                gather(e, column);
                for (long i = 0; i < 3; i++) d[i][j] = column[i];
            }
            for (long i = 0; i < 3; i++) {
                vec row[3];
                gather(d[i], row);
                for (long j = 0; j < 3; j++) store(kernels + ((channel * 3 + i) * 3 + j) * o + k, row[j]);
            }
        }
}

/* x (n, h, w, c) -> v (groups of ROWS tiles, 36, c / LANES, ROWS, LANES), for tiles `from` to `to` of all images. */
static void transform_tiles(const float *x, float *v, long from, long to, layer s, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long t = from; t < to; t++) {
        long image = t / (s.down * s.across), top = t / s.across % s.down * 4 - s.padding, left = t % s.across * 4 - s.padding;
        float *of_tile = v + (t - from) / ROWS * 36 * s.c * ROWS + (t - from) % ROWS * LANES;
        for (long k = 0; k < s.c; k += LANES) {
            vec e[6][6];
            for (long j = 0; j < 6; j++) {
                vec d[6], column[6];
                for (long i = 0; i < 6; i++) {
                    long row = top + i, at = left + j;
                    int inside = row >= 0 && row < s.h && at >= 0 && at < s.w;
                    d[i] = inside ? load(x + ((image * s.h + row) * s.w + at) * s.c + k) : (vec){0};
                }
                before(d, column);
                for (long i = 0; i < 6; i++) e[i][j] = column[i];
            }
            for (long i = 0; i < 6; i++) {
                vec row[6];
                before(e[i], row);
                for (long j = 0; j < 6; j++) store(of_tile + ((6 * i + j) * s.c + k) * ROWS, row[j]);
            }
        }
    }
}

/* v (c / LANES, ROWS, LANES) times u (c, 2 * LANES) -> ROWS rows of m, so many floats apart. */
static inline void multiply(const float *v, const float *u, float *m, long c, long apart) {
    vec first[ROWS], second[ROWS];
    for (int row = 0; row < ROWS; row++) first[row] = second[row] = (vec){0};
    for (long k = 0; k < c; k += LANES, v += ROWS * LANES)
        for (int lane = 0; lane < LANES; lane++, u += 2 * LANES) {
            vec a = load(u), b = load(u + LANES);
            __builtin_prefetch(u + 256), __builtin_prefetch(u + 256 + LANES);
#pragma GCC unroll 16
            for (int row = 0; row < ROWS; row++) {
                float factor = v[row * LANES + lane];
                first[row] += a * factor, second[row] += b * factor;
            }
        }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; row++) store(m + row * apart, first[row]), store(m + row * apart + LANES, second[row]);
}

/* m (tiles, o / (2 * LANES), 36, 2 * LANES) -> y (n, height, width, o), with the bias, what is to be added, and a ReLU. */
static void transform_back(const float *m, const float *bias, const float *added, float *y, long from, long to, long clip,
                           layer s) {
    for (long t = from; t < to; t++) {
        long image = t / (s.down * s.across), top = t / s.across % s.down * 4, left = t % s.across * 4;
        for (long k = 0; k < s.o; k += LANES) {
            const float *of_tile = m + (t - from) * 36 * s.o + k / (2 * LANES) * 36 * 2 * LANES + k % (2 * LANES);
            vec e[4][6];
            for (long j = 0; j < 6; j++) {
                vec d[6], column[4];
                for (long i = 0; i < 6; i++) d[i] = load(of_tile + (6 * i + j) * 2 * LANES);
                after(d, column);
                for (long i = 0; i < 4; i++) e[i][j] = column[i];
            }
            for (long i = 0; i < 4 && top + i < s.height; i++) {
                vec row[4];
                after(e[i], row);
                for (long j = 0; j < 4 && left + j < s.width; j++) {
                    long at = ((image * s.height + top + i) * s.width + left + j) * s.o + k;
                    vec sum = row[j] + load(bias + k);
                    if (added) sum += load(added + at);
                    store(y + at, clip ? relu(sum) : sum);
                }
            }
        }
    }
}

/* x (n, h, w, c); weight (36, o / 32, c, 32), transformed; added like y or NULL; y (n, h + 2 padding - 2, w + 2 padding - 2, o);
   scratch of `room` floats for each thread, at least 36 * (c + o) * 13. o is a multiple of 32. */
void winograd_convolution(const float *x, const float *weight, const float *bias, const float *added, float *y, float *scratch,
                          long room, long n, long h, long w, long c, long o, long padding, long clip, long threads) {
    long height = h + 2 * padding - 2, width = w + 2 * padding - 2;
    layer s = {h, w, c, o, padding, height, width, (height + 3) / 4, (width + 3) / 4};
    long tiles = n * s.down * s.across, block = room / (36 * (c + o) * ROWS) * ROWS;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long from = 0; from < tiles; from += block) {
        float *v = scratch + omp_get_thread_num() * room, *m = v + block * 36 * c;
        long to = from + block < tiles ? from + block : tiles;
        transform_tiles(x, v, from, to, s, 1);
        for (long p = 0; p < 36; p++)
            for (long k = 0; k < o; k += 2 * LANES)
                for (long t = 0; t < to - from; t += ROWS) {
                    float *to_rows = m + (t * o + k) * 36 + p * 2 * LANES;
                    multiply(v + (t * 36 + p * ROWS) * c, weight + (p * o + k) * c, to_rows, c, 36 * o);
                }
        transform_back(m, bias, added, y, from, to, clip, s);
    }
}

static inline void turned_after(const vec e[4], vec d[6]) {
    vec p = e[0] + e[2], q = e[1] + e[3], r = e[0] + 4 * e[2], s = 2 * e[1] + 8 * e[3];
    d[0] = e[0], d[1] = p + q, d[2] = p - q, d[3] = r + s, d[4] = r - s, d[5] = e[3];
}

static void transform_gradient(const float *gradient, float *m, long from, long to, layer s, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long t = from; t < to; t++) {
        long image = t / (s.down * s.across), top = t / s.across % s.down * 4, left = t % s.across * 4;
        float *of_tile = m + (t - from) / ROWS * 36 * s.o * ROWS + (t - from) % ROWS * LANES;
        for (long k = 0; k < s.o; k += LANES) {
            vec e[6][4];
            for (long j = 0; j < 4; j++) {
                vec d[4], column[6];
                for (long i = 0; i < 4; i++) {
                    int inside = top + i < s.height && left + j < s.width;
                    d[i] = inside ? load(gradient + ((image * s.height + top + i) * s.width + left + j) * s.o + k) : (vec){0};
                }
                turned_after(d, column);
                for (long i = 0; i < 6; i++) e[i][j] = column[i];
            }
            for (long i = 0; i < 6; i++) {
                vec row[6];
                turned_after(e[i], row);
                for (long j = 0; j < 6; j++) store(of_tile + ((6 * i + j) * s.o + k) * ROWS, row[j]);
            }
        }
    }
}

/* Eight rows of the gradient of a plane, two vectors each, from all tiles of a block. */
static inline void accumulate(const float *v, const float *m, float *to, long tiles, long c, long o) {
    vec first[8], second[8];
    for (int row = 0; row < 8; row++) first[row] = load(to + row * 2 * LANES), second[row] = load(to + row * 2 * LANES + LANES);
    for (long t = 0; t < tiles; t += ROWS, v += 36 * c * ROWS, m += 36 * o * ROWS)
        for (long tile = 0; tile < ROWS && t + tile < tiles; tile++) {
            vec a = load(m + tile * LANES), b = load(m + (ROWS + tile) * LANES);
            for (int row = 0; row < 8; row++) {
                float factor = v[tile * LANES + row];
                first[row] += a * factor, second[row] += b * factor;
            }
        }
    for (int row = 0; row < 8; row++) store(to + row * 2 * LANES, first[row]), store(to + row * 2 * LANES + LANES, second[row]);
}

/* The gradient of its transformed weight, laid out as that is, from x and the gradient of y: (B^T d B)^T (A g A^T), summed over
   all tiles. scratch of `room` floats, at least 36 * (c + o) * 13. */
void winograd_convolution_back(const float *x, const float *gradient, float *weight, float *scratch, long room, long n, long h,
                               long w, long c, long o, long padding, long threads) {
    long height = h + 2 * padding - 2, width = w + 2 * padding - 2;
    layer s = {h, w, c, o, padding, height, width, (height + 3) / 4, (width + 3) / 4};
    long tiles = n * s.down * s.across, block = room / (36 * (c + o) * ROWS) * ROWS;
    float *v = scratch, *m = v + block * 36 * c;
    memset(weight, 0, 36 * c * o * sizeof *weight);
    for (long from = 0; from < tiles; from += block) {
        long to = from + block < tiles ? from + block : tiles;
        transform_tiles(x, v, from, to, s, threads);
        transform_gradient(gradient, m, from, to, s, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long p = 0; p < 36; p++)
            for (long k = 0; k < o; k += 2 * LANES)
                for (long i = 0; i < c; i += 8) {
                    const float *of_channels = v + (p * c + i / LANES * LANES) * ROWS + i % LANES;
                    accumulate(of_channels, m + (p * o + k) * ROWS, weight + (p * o + k) * c + i * 2 * LANES, to - from, c, o);
                }
    }
}
