/* Two layers that torch has no fast operation for, there and back, in plain C with the vectors of GCC and Clang; bslib/loops.py
   calls them. All tensors are float32, but for a result that may be bfloat16, and, but for the images of the first, channels-last:
   (images, rows, columns, channels). Channels come in multiples of 16, filters in multiples of 32. */
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
typedef unsigned words __attribute__((vector_size(4 * LANES)));
typedef unsigned short halves __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))
static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
static inline vec choose(bits where, vec a, vec b) { return (vec)(((bits)a & where) | ((bits)b & ~where)); }
/* As torch has them: what is not a number stays so. */
static inline vec larger(vec a, vec b) { return choose((bits)(a > b) | (bits)(a != a), a, b); }
static inline vec relu(vec a) { return (vec)((bits)a & ~(bits)(a < 0)); }
static inline vec only(bits where, vec a) { return (vec)((bits)a & where); }

/* As float32 or, rounded to the nearest and of two to the even one, as bfloat16. */
static inline void put(void *y, long at, vec v, long half) {
    if (!half) {
        store((float *)y + at, v);
        return;
    }
    words all = (words)v, number = (words)(v == v), rounded = all + 0x7fff + (all >> 16 & 1);
    halves upper = __builtin_convertvector(((number & rounded) | (~number & 0x7fc00000)) >> 16, halves);
    memcpy((unsigned short *)y + at, &upper, sizeof upper);
}

/* Where each maximum of four came from, the first of equals; 4 where a ReLU makes it 0. Eight neighbours share a number, `column`
   says which four bits are whose. */
static inline void remember(const vec of[4], vec result, long clip, long column, int *to) {
    vec most = of[0];
    bits from = {0}, before = {0};
    for (int place = 1; place < 4; place++) {
        bits where = (bits)(of[place] > most);
        most = choose(where, of[place], most), from = (from & ~where) | (place & where);
    }
    if (clip) from = (from & (bits)(result > 0)) | (4 & ~(bits)(result > 0));
    if (column % 8) memcpy(&before, to, sizeof before);
    before |= from << (int)(column % 8 * 4);
    memcpy(to, &before, sizeof before);
}

static inline bits recall(const int *from, long column) {
    bits all;
    memcpy(&all, from, sizeof all);
    return all >> (int)(column % 8 * 4) & 15;
}

/* A convolution of stride 1, the maximum over 2 x 2 and, where asked for, a ReLU, without the four times larger result between.
   x (n, c, h, w), channels first, c small; weight (c * kh * kw, o); y (n, ph, pw, o), bfloat16 where `half` says so; o is a
   multiple of 32. What the way back needs, from where the maxima came, goes to `from` (n, ph, pw / 8 rounded up, o) unless that is
   NULL. Of one image: */
INLINE void pooled(const float *x, const float *weight, const float *bias, void *y, int *from, long c, long h, long w,
                   long kh, long kw, long o, long ph, long pw, long clip, long half) {
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
                put(y, to, clip ? relu(a) : a, half);
                put(y, to + LANES, clip ? relu(b) : b, half);
                if (!from) continue;
                int *origin = from + (i * ((pw + 7) / 8) + j / 8) * o + k;
                remember(first, a, clip, j, origin), remember(second, b, clip, j, origin + LANES);
            }
}

void pooled_convolution(const float *x, const float *weight, const float *bias, void *y, int *from, long n, long c, long h,
                        long w, long kh, long kw, long o, long ph, long pw, long clip, long half, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long image = 0; image < n; image++) {
        const float *own = x + image * c * h * w;
        void *to = (char *)y + image * ph * pw * o * (half ? 2 : 4);
        int *origin = from ? from + image * ph * ((pw + 7) / 8) * o : NULL;
        /* The compiler unrolls loops over numbers that it knows. */
        if (c == 1 && kh == 3 && kw == 3) pooled(own, weight, bias, to, origin, 1, h, w, 3, 3, o, ph, pw, clip, half);
        else pooled(own, weight, bias, to, origin, c, h, w, kh, kw, o, ph, pw, clip, half);
    }
}

/* The gradients of its weight (c * kh * kw, o), of no more than 32 rows, and of its bias (o), from that of y and from where the
   maxima came; what one image adds to as many filters, from k on, as a vector has: */
INLINE void pooled_back(const float *x, const float *gradient, const int *from, float *weight, float *bias, long k, long c,
                        long h, long w, long kh, long kw, long o, long ph, long pw) {
    vec sum[32], all = load(bias + k);
#pragma GCC unroll 9
    for (long row = 0; row < c * kh * kw; row++) sum[row] = load(weight + row * o + k);
    for (long i = 0; i < ph; i++)
        for (long j = 0; j < pw; j++) {
            bits place = recall(from + (i * ((pw + 7) / 8) + j / 8) * o + k, j);
            vec g = load(gradient + (i * pw + j) * o + k), of[4];
            for (int p = 0; p < 4; p++) of[p] = only((bits)(place == p), g);
            all += (of[0] + of[1]) + (of[2] + of[3]);
            for (long channel = 0; channel < c; channel++)
#pragma GCC unroll 3
                for (long u = 0; u < kh; u++) {
                    const float *upper = x + (channel * h + 2 * i + u) * w + 2 * j, *lower = upper + w;
                    vec *to = sum + (channel * kh + u) * kw;
#pragma GCC unroll 3
                    for (long v = 0; v < kw; v++) {
                        to[v] += of[0] * upper[v], to[v] += of[1] * upper[v + 1];
                        to[v] += of[2] * lower[v], to[v] += of[3] * lower[v + 1];
                    }
                }
        }
#pragma GCC unroll 9
    for (long row = 0; row < c * kh * kw; row++) store(weight + row * o + k, sum[row]);
    store(bias + k, all);
}

void pooled_convolution_back(const float *x, const float *gradient, const int *from, float *weight, float *bias, long n,
                             long c, long h, long w, long kh, long kw, long o, long ph, long pw, long threads) {
    memset(weight, 0, c * kh * kw * o * sizeof *weight), memset(bias, 0, o * sizeof *bias);
    long each = (o / LANES + threads - 1) / threads * LANES;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long first = 0; first < o; first += each)
        for (long image = 0; image < n; image++)
            for (long k = first; k < o && k < first + each; k += LANES) {
                const float *own = x + image * c * h * w, *of_own = gradient + image * ph * pw * o;
                const int *origin = from + image * ph * ((pw + 7) / 8) * o;
                if (c == 1 && kh == 3 && kw == 3) pooled_back(own, of_own, origin, weight, bias, k, 1, h, w, 3, 3, o, ph, pw);
                else pooled_back(own, of_own, origin, weight, bias, k, c, h, w, kh, kw, o, ph, pw);
            }
}

/* And the gradient of x: each maximum adds, filter by filter, the kernel where it lay among the inputs of the four.
   kernels (o, 5, patch): these inputs (c, kh + 1, kw + 1) for each place, and zeros for the fifth; a patch is filled up to whole
   vectors, no more than eight. Of one image: */
INLINE void pooled_back_to(const float *gradient, const int *from, const float *kernels, float *of_x, long c, long h, long w,
                           long kh, long kw, long o, long ph, long pw, long patch) {
    for (long i = 0; i < ph; i++)
        for (long j = 0; j < pw; j++) {
            const float *g = gradient + (i * pw + j) * o;
            const int *origin = from + (i * ((pw + 7) / 8) + j / 8) * o;
            vec sum[4][8] = {0};
            for (long k = 0; k < o; k += 4)
                for (long q = 0; q < 4; q++) {
                    const float *kernel = kernels + ((k + q) * 5 + (origin[k + q] >> (j % 8 * 4) & 15)) * patch;
                    for (long v = 0; v < patch / LANES; v++) sum[q][v] += load(kernel + v * LANES) * g[k + q];
                }
            float inputs[8 * LANES];
            for (long v = 0; v < patch / LANES; v++)
                store(inputs + v * LANES, (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]));
            for (long channel = 0; channel < c; channel++)
                for (long u = 0; u <= kh; u++)
                    for (long v = 0; v <= kw; v++)
                        of_x[(channel * h + 2 * i + u) * w + 2 * j + v] += inputs[(channel * (kh + 1) + u) * (kw + 1) + v];
        }
}

void pooled_convolution_back_to(const float *gradient, const int *from, const float *kernels, float *of_x, long n, long c, long h,
                                long w, long kh, long kw, long o, long ph, long pw, long patch, long threads) {
    memset(of_x, 0, n * c * h * w * sizeof *of_x);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long image = 0; image < n; image++) {
        const float *g = gradient + image * ph * pw * o;
        const int *origin = from + image * ph * ((pw + 7) / 8) * o;
        float *to = of_x + image * c * h * w;
        if (c == 1 && kh == 3 && kw == 3) pooled_back_to(g, origin, kernels, to, 1, h, w, 3, 3, o, ph, pw, LANES);
        else pooled_back_to(g, origin, kernels, to, c, h, w, kh, kw, o, ph, pw, patch);
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

/* At stride 2 a line of 9 inputs gives 4 outputs: those at 0, 2, 4, 6 and 8 meet the first and the last of three weights, by
   F(4, 2) at the points 0, 1, -1, 2 and infinity; those between meet the middle weight, each for itself. 81 products where the
   direct way takes 144. */
static inline void before_strided(const vec d[9], vec e[9]) {
    vec p = d[6] - d[4], q = d[6] - d[2];
    e[0] = 2 * (d[0] - d[4]) + q, e[1] = p - 2 * d[2], e[2] = 2 * d[2] - 3 * d[4] + d[6], e[3] = q;
    e[4] = 2 * (d[2] - d[6]) - d[4] + d[8];
    e[5] = d[1], e[6] = d[3], e[7] = d[5], e[8] = d[7];
}

static inline void after_strided(const vec d[9], vec e[4]) {
    vec p = d[1] + d[2], q = d[1] - d[2];
    e[0] = d[0] + p + d[3] + d[5], e[1] = q + 2 * d[3] + d[6], e[2] = p + 4 * d[3] + d[7], e[3] = q + 8 * d[3] + d[4] + d[8];
}

static inline void spread_strided(const vec d[3], vec e[6]) {
    e[0] = d[0] / 2, e[1] = (d[0] + d[2]) / -2, e[2] = (d[0] - d[2]) / -6, e[3] = (d[0] + 2 * d[2]) / 6, e[4] = d[2], e[5] = d[1];
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
void winograd_weight(const float *kernels, float *weight, long c, long o, long stride) {
    void (*along)(const vec *, vec *) = stride == 1 ? spread : spread_strided;
    for (long channel = 0; channel < c; channel++)
        for (long k = 0; k < o; k += LANES) {
            vec e[6][3];
            for (long j = 0; j < 3; j++) {
                vec d[3], column[6];
                for (long i = 0; i < 3; i++) d[i] = load(kernels + ((channel * 3 + i) * 3 + j) * o + k);
                along(d, column);
                for (long i = 0; i < 6; i++) e[i][j] = column[i];
            }
            float *to = weight + (k / (2 * LANES) * c + channel) * 2 * LANES + k % (2 * LANES);
            for (long i = 0; i < 6; i++) {
                vec row[6];
                along(e[i], row);
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

/* x (n, h, w, c) -> v (groups of ROWS tiles, edge * edge, c / LANES, ROWS, LANES), one tile `t` of all images to the place
   `at`; its edge is 6, or 9 at stride 2. */
INLINE void transform_tile(const float *x, float *v, long t, long at, layer s, const long edge) {
    const long step = edge == 6 ? 4 : 8;
    long image = t / (s.down * s.across), top = t / s.across % s.down * step - s.padding, left = t % s.across * step - s.padding;
    float *of_tile = v + at / ROWS * edge * edge * s.c * ROWS + at % ROWS * LANES;
    for (long k = 0; k < s.c; k += LANES) {
        vec e[9][9];
        for (long j = 0; j < edge; j++) {
            vec d[9], column[9];
            for (long i = 0; i < edge; i++) {
                long row = top + i, place = left + j;
                int inside = row >= 0 && row < s.h && place >= 0 && place < s.w;
                d[i] = inside ? load(x + ((image * s.h + row) * s.w + place) * s.c + k) : (vec){0};
            }
            if (edge == 6) before(d, column);
            else before_strided(d, column);
            for (long i = 0; i < edge; i++) e[i][j] = column[i];
        }
        for (long i = 0; i < edge; i++) {
            vec row[9];
            if (edge == 6) before(e[i], row);
            else before_strided(e[i], row);
            for (long j = 0; j < edge; j++) store(of_tile + ((edge * i + j) * s.c + k) * ROWS, row[j]);
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

/* m (tiles, o / (2 * LANES), edge * edge, 2 * LANES) -> y (n, height, width, o), with the bias, what is to be added, and a ReLU. */
INLINE void transform_back(const float *m, const float *bias, const float *added, float *y, long from, long to, long clip, layer s,
                           const long edge) {
    for (long t = from; t < to; t++) {
        long image = t / (s.down * s.across), top = t / s.across % s.down * 4, left = t % s.across * 4;
        for (long k = 0; k < s.o; k += LANES) {
            const float *of_tile = m + ((t - from) * s.o + k / (2 * LANES) * 2 * LANES) * edge * edge + k % (2 * LANES);
            vec e[4][9];
            for (long j = 0; j < edge; j++) {
                vec d[9], column[4];
                for (long i = 0; i < edge; i++) d[i] = load(of_tile + (edge * i + j) * 2 * LANES);
                if (edge == 6) after(d, column);
                else after_strided(d, column);
                for (long i = 0; i < 4; i++) e[i][j] = column[i];
            }
            for (long i = 0; i < 4 && top + i < s.height; i++) {
                vec row[4];
                if (edge == 6) after(e[i], row);
                else after_strided(e[i], row);
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

/* Of one block of tiles. At stride 2 the last weights in a line are those of the four inputs between. */
INLINE void winograd_block(const float *x, const float *weight, const float *bias, const float *added, float *y, float *v, float *m,
                           long from, long to, long clip, layer s, const long edge) {
    for (long t = from; t < to; t++) transform_tile(x, v, t, t - from, s, edge);
    for (long p = 0; p < 36; p++)
        for (long k = 0; k < s.o; k += 2 * LANES)
            for (long i = p / 6; i < (p / 6 < 5 ? p / 6 + 1 : edge); i++)
                for (long j = p % 6; j < (p % 6 < 5 ? p % 6 + 1 : edge); j++)
                    for (long t = 0; t < to - from; t += ROWS) {
                        const float *of_tiles = v + (t * edge * edge + (edge * i + j) * ROWS) * s.c;
                        float *to_rows = m + (t * s.o + k) * edge * edge + (edge * i + j) * 2 * LANES;
                        multiply(of_tiles, weight + (p * s.o + k) * s.c, to_rows, s.c, edge * edge * s.o);
                    }
    transform_back(m, bias, added, y, from, to, clip, s, edge);
}

static layer layer_of(long h, long w, long c, long o, long padding, long stride) {
    long height = (h + 2 * padding - 3) / stride + 1, width = (w + 2 * padding - 3) / stride + 1;
    return (layer){h, w, c, o, padding, height, width, (height + 3) / 4, (width + 3) / 4};
}

/* x (n, h, w, c); weight (36, o / 32, c, 32), transformed; added like y or NULL; y (n, height, width, o). scratch of `room` floats
   for each thread, at least 13 * (c + o) * 36, at stride 2 * 81. o is a multiple of 32. */
void winograd_convolution(const float *x, const float *weight, const float *bias, const float *added, float *y, float *scratch,
                          long room, long n, long h, long w, long c, long o, long padding, long stride, long clip, long threads) {
    layer s = layer_of(h, w, c, o, padding, stride);
    long planes = stride == 1 ? 36 : 81, tiles = n * s.down * s.across, block = room / (planes * (c + o) * ROWS) * ROWS;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long from = 0; from < tiles; from += block) {
        float *v = scratch + omp_get_thread_num() * room, *m = v + block * planes * c;
        long to = from + block < tiles ? from + block : tiles;
        if (stride == 1) winograd_block(x, weight, bias, added, y, v, m, from, to, clip, s, 6);
        else winograd_block(x, weight, bias, added, y, v, m, from, to, clip, s, 9);
    }
}

static inline void turned_after(const vec e[4], vec d[6]) {
    vec p = e[0] + e[2], q = e[1] + e[3], r = e[0] + 4 * e[2], s = 2 * e[1] + 8 * e[3];
    d[0] = e[0], d[1] = p + q, d[2] = p - q, d[3] = r + s, d[4] = r - s, d[5] = e[3];
}

/* The gradient of y, 0 where a ReLU made y so (not where y is NULL), to m (groups of ROWS tiles, 36, o / LANES, ROWS, LANES). */
static void transform_gradient(const float *gradient, const float *y, float *m, long from, long to, layer s, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long t = from; t < to; t++) {
        long image = t / (s.down * s.across), top = t / s.across % s.down * 4, left = t % s.across * 4;
        float *of_tile = m + (t - from) / ROWS * 36 * s.o * ROWS + (t - from) % ROWS * LANES;
        for (long k = 0; k < s.o; k += LANES) {
            vec e[6][4];
            for (long j = 0; j < 4; j++) {
                vec d[4], column[6];
                for (long i = 0; i < 4; i++) {
                    long at = ((image * s.height + top + i) * s.width + left + j) * s.o + k;
                    int inside = top + i < s.height && left + j < s.width;
                    d[i] = inside ? load(gradient + at) : (vec){0};
                    if (inside && y) d[i] = only(~(bits)(load(y + at) <= 0), d[i]);
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

static inline void turned_before(const vec e[6], vec d[6]) {
    vec p = e[1] + e[2], q = e[1] - e[2], r = e[3] + e[4], s = 2 * (e[3] - e[4]);
    d[0] = 4 * e[0], d[1] = 4 * (e[5] - q) - s, d[2] = -5 * e[0] - 4 * p - r;
    d[3] = q + s - 5 * e[5], d[4] = e[0] + p + r, d[5] = e[5];
}

/* v (tiles, c / (2 * LANES), 36, 2 * LANES) is added to x (n, h, w, c), where neighbours overlap. */
static void scatter_tiles(const float *v, float *x, long from, long to, layer s, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long k = 0; k < s.c; k += LANES)
        for (long t = from; t < to; t++) {
            long image = t / (s.down * s.across), top = t / s.across % s.down * 4 - s.padding, left = t % s.across * 4 - s.padding;
            const float *of_tile = v + (t - from) * 36 * s.c + k / (2 * LANES) * 36 * 2 * LANES + k % (2 * LANES);
            vec e[6][6];
            for (long j = 0; j < 6; j++) {
                vec d[6], column[6];
                for (long i = 0; i < 6; i++) d[i] = load(of_tile + (6 * i + j) * 2 * LANES);
                turned_before(d, column);
                for (long i = 0; i < 6; i++) e[i][j] = column[i];
            }
            for (long i = 0; i < 6; i++) {
                vec row[6];
                turned_before(e[i], row);
                for (long j = 0; j < 6; j++) {
                    float *at = x + ((image * s.h + top + i) * s.w + left + j) * s.c + k;
                    int inside = top + i >= 0 && top + i < s.h && left + j >= 0 && left + j < s.w;
                    if (inside) store(at, load(at) + row[j]);
                }
            }
        }
}

/* The way back, each step of it turned around: with M = A g A^T from the gradient g of y (n, height, width, o), and V = B^T d B
   from x (n, h, w, c), the gradient of the transformed weight is V^T M, summed over all tiles, that of the bias the sum over g,
   which is M at the point (1, 1), and that of x is B (M U^T) B^T. Of a block of tiles: */
static void weight_of_block(const float *x, const float *m, float *v, float *weight, float *bias, long from, long to, layer s,
                            long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long t = from; t < to; t++) transform_tile(x, v, t, t - from, s, 6);
    for (long t = 0; t < to - from; t++)
        for (long k = 0; k < s.o; k += LANES) {
            const float *sum = m + (t / ROWS * 36 + 7) * s.o * ROWS + k * ROWS + t % ROWS * LANES;
            store(bias + k, load(bias + k) + load(sum));
        }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long p = 0; p < 36; p++)
        for (long k = 0; k < s.o; k += 2 * LANES)
            for (long i = 0; i < s.c; i += 8) {
                const float *of_channels = v + (p * s.c + i / LANES * LANES) * ROWS + i % LANES;
                float *of_weight = weight + (p * s.o + k) * s.c + i * 2 * LANES;
                accumulate(of_channels, m + (p * s.o + k) * ROWS, of_weight, to - from, s.c, s.o);
            }
}

static void inputs_of_block(const float *m, const float *turned, float *v, float *of_x, long from, long to, layer s, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long p = 0; p < 36; p++)
        for (long k = 0; k < s.c; k += 2 * LANES)
            for (long t = 0; t < to - from; t += ROWS) {
                float *to_rows = v + (t * s.c + k) * 36 + p * 2 * LANES;
                multiply(m + (t * 36 + p * ROWS) * s.o, turned + (p * s.c + k) * s.o, to_rows, s.o, 36 * s.c);
            }
    scatter_tiles(v, of_x, from, to, s, threads);
}

/* y or NULL: what a ReLU was taken of. turned (36, c / 32, o, 32): the transformed weight with channels and filters exchanged; it
   and of_x are NULL where that gradient is not wanted, weight and bias where those are not. scratch of `room` floats, at least
   36 * (c + o) * 13. c and o are multiples of 32. */
void winograd_convolution_back(const float *x, const float *gradient, const float *y, const float *turned, float *weight,
                               float *bias, float *of_x, float *scratch, long room, long n, long h, long w, long c, long o,
                               long padding, long threads) {
    layer s = layer_of(h, w, c, o, padding, 1);
    long each = s.down * s.across, tiles = n * each, block = room / (36 * (c + o) * ROWS) * ROWS, zeroed = 0;
    float *v = scratch, *m = v + block * 36 * c;
    if (weight) memset(weight, 0, 36 * c * o * sizeof *weight), memset(bias, 0, o * sizeof *bias);
    for (long from = 0; from < tiles; from += block) {
        long to = from + block < tiles ? from + block : tiles, begun = (to + each - 1) / each;
        transform_gradient(gradient, y, m, from, to, s, threads);
        if (weight) weight_of_block(x, m, v, weight, bias, from, to, s, threads);
        if (!of_x) continue;
        memset(of_x + zeroed * h * w * c, 0, (begun - zeroed) * h * w * c * sizeof *of_x), zeroed = begun;
        inputs_of_block(m, turned, v, of_x, from, to, s, threads);
    }
}
