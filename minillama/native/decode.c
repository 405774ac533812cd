/* One decoding step of a block, and products with packed weights, on a CPU.
 *
 * Decoding reads every weight once for each token, so these functions are written to
 * read: weights stay packed, one pass, no copy, and all threads stay in one parallel
 * region through a whole block. What they compute is what attention.py, feed_forward.py
 * and quantize.py say in PyTorch, and tests hold them to it.
 *
 * Activations meet int8 and int4 weights as 16-bit integers, one scale for each 32 of
 * them: an error of 1/65534 of the largest of the 32. Sums of 32 products are exact.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(PLAIN_C)
#include <immintrin.h>
#define HAVE_AVX2 1
#endif

enum { FLOAT32, BFLOAT16, INT8, INT4 };
enum { GROUP = 32, ROWS = 8, MOST_COLUMNS = 4, MOST_HEADS = 4, AT_ONCE = 32 };

/* A weight of n rows and k columns. FLOAT32 and BFLOAT16 lie row by row. INT8 and INT4
 * lie in tiles of 8 rows and 32 columns (see `to_tiles`), with one scale for
 * each row of a tile; INT4 means scale * q + zero, or scale * (q - 8) without zeros.
 * With scale_step 0 all tiles of a row share one scale. */
typedef struct {
    const void *data;
    const uint16_t *scale, *zero; /* float16 */
    int64_t n, k, kind, scale_step;
} Matrix;

typedef struct {
    Matrix wq, wk, wv, wo, w_gate, w_up, w_down;
    const float *attention_norm, *ffn_norm;
    double norm_eps;
    int64_t dim, ffn_dim, n_heads, n_kv_heads, head_dim;
} Block;

/* A cache of one layer: batch x n_kv_heads x room x head_dim, `length` of them filled. */
typedef struct {
    void *keys, *values;
    int64_t kind, room, length;
} Cache;

/* Activations as the products want them: floats, and 16-bit integers with a scale and
 * the plain sum for each group of 32. */
typedef struct {
    float *x;
    int16_t *q;
    float *scale, *sum;
} Rows;

/* Eight floats, which the compiler puts into whatever registers there are. */
typedef float Lanes __attribute__((vector_size(32), aligned(4)));
typedef uint16_t Shorts __attribute__((vector_size(16), aligned(2)));
typedef uint32_t Bits __attribute__((vector_size(32)));
enum { LANES = 8 };

static float half_table[1 << 16];

void prepare(void) {
    for (uint32_t h = 0; h < 1 << 16; h++) {
        int exponent = h >> 10 & 31, sign = h >> 15 ? -1 : 1;
        float fraction = (float)(h & 1023) / 1024;
        half_table[h] = exponent == 31 ? (h & 1023 ? NAN : sign * INFINITY)
                        : exponent     ? sign * ldexpf(1 + fraction, exponent - 15)
                                       : sign * ldexpf(fraction, -14);
    }
}

static inline float bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline uint16_t to_bf16(float x) { /* round to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline Lanes lanes(const void *data, int kind, int64_t at) {
    if (kind == FLOAT32) return *(const Lanes *)((const float *)data + at);
    const uint16_t *x = (const uint16_t *)data + at;
#ifdef HAVE_AVX2
    return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)x)), 16);
#else
    return (Lanes)(__builtin_convertvector(*(const Shorts *)x, Bits) << 16);
#endif
}

static inline float one_float(const void *data, int kind, int64_t at) {
    return kind == FLOAT32 ? ((const float *)data)[at] : bf16(((const uint16_t *)data)[at]);
}

static inline float total(Lanes v) {
#ifdef HAVE_AVX2
    __m256 w = (__m256)v;
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
#endif
}

static uint16_t to_half(float x) { /* round to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float size = fabsf(x);
    if (!(size < 65520)) return sign | (size - size == 0 || size == INFINITY ? 0x7c00 : 0x7e00);
    if (size < 6.103515625e-5f) return sign | (uint16_t)rintf(size * 16777216);
    bits = (bits & 0x7fffffff) - (112u << 23);
    return sign | (uint16_t)((bits + 0xfff + (bits >> 13 & 1)) >> 13);
}

/* e^x within 2e-7, in a form that compilers turn into vector code. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x; /* in this order a NaN stays one */
    x = x > 88.0f ? 88.0f : x;
    float n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
    int32_t bits;
    memcpy(&bits, &n, 4);
    n -= 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    bits = (int32_t)((uint32_t)(bits - 0x4b400000) << 23) + 0x3f800000;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* The order in which a 32-bit word of a tile gives up its columns: its low nibbles or
 * bytes first, two at a time, as products of 16-bit pairs want them. */
static int column(int64_t kind, int i) {
    if (kind == INT8) return (i & ~3) + (i & 1) * 2 + (i >> 1 & 1);
    return (i >> 3) * 4 + (i & 1) * 2 + (i >> 2 & 1) + (i >> 1 & 1) * 16;
}

static void to_integers(Rows rows, int64_t kind, int64_t group) {
    const float *x = rows.x + group * GROUP;
    int16_t *q = rows.q + group * GROUP;
    float largest = 0, sum = 0, whole[GROUP];
    for (int i = 0; i < GROUP; i++) largest = fmaxf(largest, fabsf(x[i]));
    for (int i = 0; i < GROUP; i++) sum += x[i];
    rows.sum[group] = sum;
    if (!(sum - sum == 0)) { /* a NaN or an infinity, which must not be lost */
        rows.scale[group] = NAN;
        memset(q, 0, GROUP * sizeof(int16_t));
        return;
    }
    float inverse = largest > 1e-30f ? 32767 / largest : 0;
    rows.scale[group] = largest / 32767;
    for (int i = 0; i < GROUP; i++) whole[i] = rintf(x[i] * inverse);
    for (int i = 0; i < GROUP; i++) q[i] = (int16_t)whole[column(kind, i)];
}

#ifdef HAVE_AVX2
static inline __m256i pair(const int16_t *q) { /* two integers, in every lane */
    int32_t both;
    memcpy(&both, q, 4);
    return _mm256_set1_epi32(both);
}

/* Sums of 32 products for 8 rows at once, a row a lane. */
static inline __attribute__((always_inline)) void tile(
    const void *data, int kind, const int16_t *q, int64_t k, int columns, __m256i *sum) {
    const __m256i *words = data, mask = _mm256_set1_epi16(15);
    for (int c = 0; c < columns; c++) sum[c] = _mm256_setzero_si256();
    if (kind == INT4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m256i w = _mm256_loadu_si256(words + i);
            __m256i w0 = _mm256_and_si256(w, mask);
            __m256i w1 = _mm256_and_si256(_mm256_srli_epi16(w, 4), mask);
            __m256i w2 = _mm256_and_si256(_mm256_srli_epi16(w, 8), mask);
            __m256i w3 = _mm256_srli_epi16(w, 12);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) {
                const int16_t *x = q + c * k + i * 8;
                __m256i low = _mm256_add_epi32(_mm256_madd_epi16(w0, pair(x)),
                                               _mm256_madd_epi16(w1, pair(x + 2)));
                __m256i high = _mm256_add_epi32(_mm256_madd_epi16(w2, pair(x + 4)),
                                                _mm256_madd_epi16(w3, pair(x + 6)));
                sum[c] = _mm256_add_epi32(sum[c], _mm256_add_epi32(low, high));
            }
        }
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m256i w = _mm256_loadu_si256(words + i);
            __m256i w0 = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
            __m256i w1 = _mm256_srai_epi16(w, 8);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) {
                const int16_t *x = q + c * k + i * 4;
                sum[c] = _mm256_add_epi32(
                    sum[c], _mm256_add_epi32(_mm256_madd_epi16(w0, pair(x)),
                                             _mm256_madd_epi16(w1, pair(x + 2))));
            }
        }
    }
}

static inline __attribute__((always_inline)) void packed_rows(
    const Matrix *w, int kind, int64_t row, Rows x, int columns, float *y, int64_t stride,
    int add) {
    int64_t k = w->k, groups = k / GROUP, size = kind == INT4 ? 128 : 256;
    const uint8_t *data = (const uint8_t *)w->data + row * k * (kind == INT4 ? 4 : 8) / 8;
    const uint16_t *scale = w->scale + row * (w->scale_step ? groups : 1);
    const uint16_t *zero = w->zero ? w->zero + row * groups : 0;
    __m256 acc[MOST_COLUMNS];
    for (int c = 0; c < columns; c++) acc[c] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++, data += size) {
        __m256i sum[MOST_COLUMNS];
        tile(data, kind, x.q + g * GROUP, k, columns, sum);
        __m256 s = _mm256_cvtph_ps(
            _mm_loadu_si128((const __m128i *)(scale + g * w->scale_step)));
        __m256 z = _mm256_setzero_ps();
        if (kind == INT4)
            z = zero ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(zero + g * 8)))
                     : _mm256_mul_ps(s, _mm256_set1_ps(-8));
        for (int c = 0; c < columns; c++) {
            __m256 both = _mm256_mul_ps(s, _mm256_set1_ps(x.scale[c * groups + g]));
            acc[c] = _mm256_fmadd_ps(both, _mm256_cvtepi32_ps(sum[c]), acc[c]);
            if (kind == INT4)
                acc[c] = _mm256_fmadd_ps(
                    z, _mm256_set1_ps(x.sum[c * groups + g]), acc[c]);
        }
    }
    for (int c = 0; c < columns; c++, y += stride) {
        if (add) acc[c] = _mm256_add_ps(acc[c], _mm256_loadu_ps(y + row));
        _mm256_storeu_ps(y + row, acc[c]);
    }
}
#else
static inline void packed_rows(
    const Matrix *w, int kind, int64_t row, Rows x, int columns, float *y, int64_t stride,
    int add) {
    int64_t k = w->k, groups = k / GROUP;
    const uint32_t *words =
        (const uint32_t *)((const uint8_t *)w->data + row * k * (kind == INT4 ? 4 : 8) / 8);
    const uint16_t *scale = w->scale + row * (w->scale_step ? groups : 1);
    const uint16_t *zero = w->zero ? w->zero + row * groups : 0;
    float acc[MOST_COLUMNS][ROWS] = {{0}};
    int each = kind == INT4 ? 8 : 4;
    for (int64_t g = 0; g < groups; g++, words += GROUP / each * ROWS) {
        for (int c = 0; c < columns; c++) {
            const int16_t *q = x.q + c * k + g * GROUP;
            int32_t sum[ROWS] = {0};
            for (int i = 0; i < GROUP / each; i++) {
                for (int r = 0; r < ROWS; r++) {
                    uint32_t word = words[i * ROWS + r], low = word & 0xffff, high = word >> 16;
                    const int16_t *p = q + i * each;
                    if (kind == INT4)
                        for (int j = 0; j < 4; j++)
                            sum[r] += (int32_t)(low >> 4 * j & 15) * p[2 * j] +
                                      (int32_t)(high >> 4 * j & 15) * p[2 * j + 1];
                    else
                        for (int j = 0; j < 2; j++)
                            sum[r] += (int8_t)(low >> 8 * j) * p[2 * j] +
                                      (int8_t)(high >> 8 * j) * p[2 * j + 1];
                }
            }
            for (int r = 0; r < ROWS; r++) {
                float s = half_table[scale[g * w->scale_step + r]];
                float z = kind == INT8 ? 0 : zero ? half_table[zero[g * 8 + r]] : -8 * s;
                acc[c][r] += s * x.scale[c * groups + g] * sum[r] + z * x.sum[c * groups + g];
            }
        }
    }
    for (int c = 0; c < columns; c++)
        for (int r = 0; r < ROWS; r++)
            y[c * stride + row + r] = acc[c][r] + (add ? y[c * stride + row + r] : 0);
}
#endif

/* For one x the rows go by one after another, as memory likes it; for several, two rows
 * at a time, so that each x is read once for both. */
static inline __attribute__((always_inline)) void float_rows(
    const Matrix *w, int kind, int64_t row, const float *x, int columns, float *y,
    int64_t stride, int add) {
    enum { TOGETHER = 2, DEEP = 2 };
    int together = columns == 1 ? 1 : TOGETHER, deep = columns == 1 ? DEEP : 1;
    int64_t k = w->k, step = deep * LANES, whole = k - k % step;
    for (int64_t n = row; n < row + ROWS && n < w->n; n += together) {
        int rows = w->n - n < together ? (int)(w->n - n) : together;
        Lanes acc[TOGETHER][MOST_COLUMNS][DEEP] = {{{{0}}}};
        int64_t at[TOGETHER]; /* a row that is not there is the last one once more */
        for (int r = 0; r < together; r++) at[r] = (n + (r < rows ? r : rows - 1)) * k;
        for (int64_t i = 0; i < whole; i += step)
            for (int d = 0; d < deep; d++) {
                Lanes v[TOGETHER];
                for (int r = 0; r < together; r++)
                    v[r] = lanes(w->data, kind, at[r] + i + d * LANES);
                for (int c = 0; c < columns; c++) {
                    Lanes one = lanes(x, FLOAT32, c * k + i + d * LANES);
                    for (int r = 0; r < together; r++) acc[r][c][d] += v[r] * one;
                }
            }
        for (int r = 0; r < together; r++)
            for (int c = 0; c < columns && r < rows; c++) {
                Lanes all = acc[r][c][0];
                for (int d = 1; d < deep; d++) all += acc[r][c][d];
                float sum = total(all);
                for (int64_t i = whole; i < k; i++)
                    sum += one_float(w->data, kind, at[r] + i) * x[c * k + i];
                y[c * stride + n + r] = sum + (add ? y[c * stride + n + r] : 0);
            }
    }
}

static inline void some_rows(
    const Matrix *w, int64_t row, Rows x, int64_t columns, float *y, int64_t stride, int add) {
    /* Constants, so that the compiler makes a loop without branches for each case. */
#define CASE(KIND, CALL) \
    if (columns == 1) CALL(w, KIND, row, IN, 1, y, stride, add); \
    else if (columns == 2) CALL(w, KIND, row, IN, 2, y, stride, add); \
    else if (columns == 3) CALL(w, KIND, row, IN, 3, y, stride, add); \
    else CALL(w, KIND, row, IN, 4, y, stride, add);
#define IN x.x
    if (w->kind == FLOAT32) { CASE(FLOAT32, float_rows) }
    else if (w->kind == BFLOAT16) { CASE(BFLOAT16, float_rows) }
#undef IN
#define IN x
    else if (w->kind == INT8) { CASE(INT8, packed_rows) }
    else { CASE(INT4, packed_rows) }
#undef IN
#undef CASE
}

/* y (batch x n, `stride` apart) = x (batch x k) times the transpose of w, or y += that.
 * To be called by all threads of a parallel region; they share the rows, and do not wait
 * for each other at the end. */
static void product(
    const Matrix *w, Rows x, int64_t batch, float *y, int64_t stride, int add) {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < w->n; row += ROWS) {
        for (int64_t b = 0; b < batch; b += MOST_COLUMNS) {
            int64_t columns = batch - b < MOST_COLUMNS ? batch - b : MOST_COLUMNS;
            int64_t groups = w->k / GROUP;
            Rows part = {x.x + b * w->k, x.q + b * w->k, x.scale + b * groups,
                         x.sum + b * groups};
            some_rows(w, row, part, columns, y + b * stride, stride, add);
        }
    }
}

static inline int is_packed(const Matrix *w) { return w->kind == INT8 || w->kind == INT4; }

static void normalise(
    const float *x, const float *weight, double eps, int64_t dim, float *y) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < dim; i++) squares += x[i] * x[i];
    float scale = 1 / sqrtf(squares / (float)dim + (float)eps);
    for (int64_t i = 0; i < dim; i++) y[i] = x[i] * scale * weight[i];
}

static inline void rotate(float *x, const float *cos, const float *sin, int64_t head_dim) {
    for (int64_t i = 0; i < head_dim / 2; i++) {
        float even = x[2 * i], odd = x[2 * i + 1];
        x[2 * i] = even * cos[i] - odd * sin[i];
        x[2 * i + 1] = even * sin[i] + odd * cos[i];
    }
}

static inline void swiglu(
    const float *gate, const float *up, int64_t start, int64_t end, float *y) {
#pragma omp simd
    for (int64_t i = start; i < end; i++) y[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
}

static void keep(void *data, int64_t kind, int64_t at, const float *x, int64_t count) {
    if (kind == FLOAT32) memcpy((float *)data + at, x, count * sizeof(float));
    else for (int64_t i = 0; i < count; i++) ((uint16_t *)data + at)[i] = to_bf16(x[i]);
}

/* Scores of `heads` queries with each key, and then the sum of values weighted by p:
 * a key or value is read once for all queries that share it. `heads` and `kind` are
 * constants where these are called. */
static inline __attribute__((always_inline)) void score(
    const void *keys, int kind, int64_t at, int64_t count, int64_t width, const float *q,
    int heads, float root, float *p) {
    for (int64_t s = 0; s < count; s++, at += width) {
        Lanes acc[MOST_HEADS] = {{0}};
        for (int64_t i = 0; i + LANES <= width; i += LANES) {
            Lanes key = lanes(keys, kind, at + i);
            for (int h = 0; h < heads; h++) acc[h] += key * lanes(q, FLOAT32, h * width + i);
        }
        for (int h = 0; h < heads; h++) {
            float sum = total(acc[h]);
            for (int64_t i = width & ~7; i < width; i++)
                sum += one_float(keys, kind, at + i) * q[h * width + i];
            p[h * count + s] = sum * root;
        }
    }
}

static inline __attribute__((always_inline)) void mix(
    const void *values, int kind, int64_t at, int64_t count, int64_t width, const float *p,
    int64_t stride, int heads, float *out, int64_t step) {
    int64_t whole = width & ~(int64_t)15;
    for (int64_t i = 0; i < whole; i += 2 * LANES) {
        Lanes acc[MOST_HEADS][2] = {{{0}}};
        for (int64_t s = 0; s < count; s++) {
            Lanes low = lanes(values, kind, at + s * width + i);
            Lanes high = lanes(values, kind, at + s * width + i + LANES);
            for (int h = 0; h < heads; h++) {
                float weight = p[h * stride + s];
                acc[h][0] += low * weight;
                acc[h][1] += high * weight;
            }
        }
        for (int h = 0; h < heads; h++) {
            *(Lanes *)(out + h * step + i) += acc[h][0];
            *(Lanes *)(out + h * step + i + LANES) += acc[h][1];
        }
    }
    for (int64_t i = whole; i < width; i++)
        for (int h = 0; h < heads; h++)
            for (int64_t s = 0; s < count; s++)
                out[h * step + i] += p[h * stride + s] * one_float(values, kind, at + s * width + i);
}

#define EACH(KIND, CALL, ...) \
    if (some == 1) CALL(KIND, 1, __VA_ARGS__); \
    else if (some == 2) CALL(KIND, 2, __VA_ARGS__); \
    else if (some == 3) CALL(KIND, 3, __VA_ARGS__); \
    else CALL(KIND, 4, __VA_ARGS__);

/* One KV head's share of keys first to last - 1 for its queries: for each of them the
 * largest score, the sum of exponentials, and the sum of values weighted by them. */
static void attend(
    const Block *b, const Cache *cache, int64_t start, const float *q, int64_t first,
    int64_t last, float *out, float *p) {
    int64_t width = b->head_dim, repeat = b->n_heads / b->n_kv_heads, count = last - first;
    int64_t step = width + 2;
    float root = 1 / sqrtf((float)width);
    start += first * width;
    for (int64_t h = 0; h < repeat; h += MOST_HEADS, out += MOST_HEADS * step) {
        int some = repeat - h < MOST_HEADS ? (int)(repeat - h) : MOST_HEADS;
        const float *queries = q + h * width;
#define SCORE(KIND, HEADS, _) \
    score(cache->keys, KIND, start, count, width, queries, HEADS, root, p)
        if (cache->kind == FLOAT32) { EACH(FLOAT32, SCORE, 0) }
        else { EACH(BFLOAT16, SCORE, 0) }
        for (int r = 0; r < some; r++) {
            float *row = p + r * count, *o = out + r * step, most = -INFINITY, sum = 0;
            for (int64_t s = 0; s < count; s++) most = row[s] > most ? row[s] : most;
#pragma omp simd
            for (int64_t s = 0; s < count; s++) row[s] = exponential(row[s] - most);
#pragma omp simd reduction(+ : sum)
            for (int64_t s = 0; s < count; s++) sum += row[s];
            o[0] = most;
            o[1] = sum;
            memset(o + 2, 0, width * sizeof(float));
        }
        /* A few at a time: `mix` goes over them once for each 16 of `width`. */
        for (int64_t s = 0; s < count; s += AT_ONCE) {
            int64_t now = count - s < AT_ONCE ? count - s : AT_ONCE;
#define MIX(KIND, HEADS, _) \
    mix(cache->values, KIND, start + s * width, now, width, p + s, count, HEADS, out + 2, step)
            if (cache->kind == FLOAT32) { EACH(FLOAT32, MIX, 0) }
            else { EACH(BFLOAT16, MIX, 0) }
        }
    }
}
#undef SCORE
#undef MIX
#undef EACH

/* Put the threads' shares of a head together. */
static void combine(
    const float *shares, int64_t count, int64_t step, int64_t width, float *out) {
    float most = -INFINITY, sum = 0;
    for (int64_t t = 0; t < count; t++) most = fmaxf(most, shares[t * step]);
    memset(out, 0, width * sizeof(float));
    for (int64_t t = 0; t < count; t++) {
        const float *share = shares + t * step;
        float weight = share[1] > 0 ? exponential(share[0] - most) : 0;
        sum += weight * share[1];
        for (int64_t i = 0; i < width; i++) out[i] += weight * share[2 + i];
    }
    for (int64_t i = 0; i < width; i++) out[i] /= sum;
}

static int64_t widest(const Block *b) {
    int64_t q = b->n_heads * b->head_dim, most = b->dim;
    if (q > most) most = q;
    return b->ffn_dim > most ? b->ffn_dim : most;
}

/* Floats of scratch memory that `block_step` wants. */
int64_t scratch_size(const Block *b, int64_t batch, int64_t length, int64_t threads) {
    int64_t wide = widest(b), gate_up = 2 * b->ffn_dim;
    int64_t qkv = (b->n_heads + 2 * b->n_kv_heads) * b->head_dim;
    int64_t shares = threads * b->n_heads * (b->head_dim + 2);
    int64_t scores = threads * MOST_HEADS * (length + 1);
    return batch * (2 * wide + wide / 8 + 16 + qkv + gate_up + shares) + scores + 64;
}

/* x (batch x dim) goes through a block in place; its keys and values enter the cache. */
void block_step(
    const Block *b, float *x, int64_t batch, const float *cos, const float *sin,
    const Cache *cache, float *scratch, int64_t threads) {
    int64_t wide = widest(b), width = b->head_dim, heads = b->n_heads, kv = b->n_kv_heads;
    int64_t repeat = heads / kv, seen = cache->length + 1, q_dim = heads * width;
    int64_t step = width + 2, kv_dim = kv * width, row = q_dim + 2 * kv_dim, ffn = b->ffn_dim;
    (void)threads; /* not used where there is no OpenMP */
    float *qkv = scratch, *gate_up = qkv + batch * row;
    float *shares = gate_up + batch * 2 * ffn;
    float *scores = shares + batch * threads * heads * step;
    float *rest = scores + threads * MOST_HEADS * seen;
    Rows in = {rest, (int16_t *)(rest + batch * wide), 0, 0};
    in.scale = rest + batch * wide + batch * (wide + 1) / 2;
    in.sum = in.scale + batch * (wide / GROUP + 1);
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
#else
        int64_t me = 0, all = 1;
#endif
#define TO_INTEGERS(W, ROW) \
    if (is_packed(&(W))) \
        for (int64_t g = 0; g < (W).k / GROUP; g++) \
            to_integers(in, (W).kind, (ROW) * ((W).k / GROUP) + g);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < batch; r++) {
            normalise(x + r * b->dim, b->attention_norm, b->norm_eps, b->dim, in.x + r * b->dim);
            TO_INTEGERS(b->wq, r)
        }
        product(&b->wq, in, batch, qkv, row, 0);
        product(&b->wk, in, batch, qkv + q_dim, row, 0);
        product(&b->wv, in, batch, qkv + q_dim + kv_dim, row, 0);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * (heads + 2 * kv); i++) {
            int64_t r = i / (heads + 2 * kv), h = i % (heads + 2 * kv);
            float *head = qkv + r * row + h * width;
            if (h < heads + kv) rotate(head, cos, sin, width);
            if (h < heads) continue;
            int64_t at = ((r * kv + (h - heads) % kv) * cache->room + cache->length) * width;
            keep(h < heads + kv ? cache->keys : cache->values, cache->kind, at, head, width);
        }
        int64_t first = seen * me / all, last = seen * (me + 1) / all;
        for (int64_t i = 0; i < batch * kv; i++) {
            int64_t r = i / kv, h = i % kv;
            attend(b, cache, i * cache->room * width,
                   qkv + r * row + h * repeat * width, first, last,
                   shares + ((r * all + me) * heads + h * repeat) * step,
                   scores + me * MOST_HEADS * seen);
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t r = 0; r < batch; r++) {
            for (int64_t h = 0; h < heads; h++)
                combine(shares + (r * all * heads + h) * step, all, heads * step, width,
                        in.x + r * q_dim + h * width);
            TO_INTEGERS(b->wo, r)
        }
        product(&b->wo, in, batch, x, b->dim, 1);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t r = 0; r < batch; r++) {
            normalise(x + r * b->dim, b->ffn_norm, b->norm_eps, b->dim, in.x + r * b->dim);
            TO_INTEGERS(b->w_gate, r)
        }
        product(&b->w_gate, in, batch, gate_up, 2 * ffn, 0);
        product(&b->w_up, in, batch, gate_up + ffn, 2 * ffn, 0);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * ((ffn + GROUP - 1) / GROUP); i++) {
            int64_t groups = (ffn + GROUP - 1) / GROUP, r = i / groups, g = i % groups;
            int64_t end = (g + 1) * GROUP < ffn ? (g + 1) * GROUP : ffn;
            const float *gate = gate_up + r * 2 * ffn;
            swiglu(gate, gate + ffn, g * GROUP, end, in.x + r * ffn);
            if (is_packed(&b->w_down)) to_integers(in, b->w_down.kind, r * (ffn / GROUP) + g);
        }
        product(&b->w_down, in, batch, x, b->dim, 1);
    }
}

/* The parts of a block between its products, for the many rows of a prompt: the same
 * functions as in block_step. */
void norm_rows(
    const float *x, const float *weight, double eps, int64_t rows, int64_t dim, float *y,
    int64_t threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) normalise(x + r * dim, weight, eps, dim, y + r * dim);
}

/* In place: x has rows of `width` floats, the first `heads` heads of each are turned. */
void rope_rows(
    float *x, const float *cos, const float *sin, int64_t batch, int64_t tokens,
    int64_t width, int64_t heads, int64_t head_dim, int64_t threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < batch * tokens; r++)
        for (int64_t h = 0; h < heads; h++) {
            int64_t t = r % tokens * (head_dim / 2);
            rotate(x + r * width + h * head_dim, cos + t, sin + t, head_dim);
        }
}

void swiglu_rows(
    const float *gate, const float *up, int64_t rows, int64_t ffn, float *y,
    int64_t threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) swiglu(gate, up, r * ffn, (r + 1) * ffn, y);
}

/* y (batch x n) = x (batch x k) times the transpose of w; scratch: batch * (k + 4). */
void linear(
    const Matrix *w, const float *x, int64_t batch, float *y, float *scratch,
    int64_t threads) {
    int64_t groups = w->k / GROUP;
    (void)threads;
    Rows in = {(float *)x, (int16_t *)scratch, scratch + batch * (w->k + 1) / 2, 0};
    in.sum = in.scale + batch * groups;
#pragma omp parallel num_threads(threads)
    {
        if (is_packed(w)) {
#pragma omp for schedule(static)
            for (int64_t g = 0; g < batch * groups; g++) to_integers(in, w->kind, g);
        }
        product(w, in, batch, y, w->n, 0);
    }
}

/* y (rows x k) = rows `first` on of w, as float32. */
void unpack(const Matrix *w, int64_t first, int64_t rows, float *y, int64_t threads) {
    int64_t k = w->k, groups = k / GROUP;
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        int64_t row = first + n, tile = row / ROWS * ROWS, r = row % ROWS;
        const uint16_t *scale = w->scale + tile * (w->scale_step ? groups : 1) + r;
        const uint16_t *zero = w->zero ? w->zero + tile * groups + r : 0;
        for (int64_t g = 0; g < groups; g++) {
            float s = half_table[scale[g * w->scale_step]], *out = y + n * k + g * GROUP;
            if (w->kind == INT4) {
                const uint8_t *at = (const uint8_t *)w->data + (tile * groups + g * ROWS) * 16;
                float z = zero ? half_table[zero[g * 8]] : -8 * s;
                for (int i = 0; i < 16; i++) {
                    uint8_t byte = at[(i / 4 * ROWS + r) * 4 + i % 4];
                    out[i] = s * (byte & 15) + z;
                    out[i + 16] = s * (byte >> 4) + z;
                }
            } else {
                const int8_t *at = (const int8_t *)w->data + (tile * groups + g * ROWS) * 32;
                for (int i = 0; i < 32; i++) out[i] = s * at[(i / 4 * ROWS + r) * 4 + i % 4];
            }
        }
    }
}

/* Rows of floats as q * scale (INT8, one scale a row) or q * scale + zero (INT4, for
 * each group), in the order that quantize.py has. */
void quantize(
    const void *data, int64_t from, int64_t kind, int64_t n, int64_t k, uint8_t *out,
    uint16_t *scale, uint16_t *zero, int64_t threads) {
    int64_t groups = k / GROUP;
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < n; row++) {
        float x[GROUP], s = 0, z;
        if (kind == INT8) {
            float largest = 0;
            for (int64_t i = 0; i < k; i++) {
                float size = fabsf(one_float(data, (int)from, row * k + i));
                largest = size > largest ? size : largest;
            }
            scale[row] = to_half(largest / 127);
            s = half_table[scale[row]];
            if (!(s > 0)) scale[row] = to_half(s = 1);
        }
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = row * k + g * GROUP;
            for (int i = 0; i < GROUP; i += LANES)
                *(Lanes *)(x + i) = lanes(data, (int)from, at + i);
            if (kind == INT8) {
                for (int i = 0; i < GROUP; i++) {
                    float q = rintf(x[i] / s);
                    q = q < -127 ? -127 : q > 127 ? 127 : q;
                    ((int8_t *)out)[at + i] = (int8_t)q;
                }
                continue;
            }
            float low = x[0], high = x[0];
            for (int i = 1; i < GROUP; i++) {
                low = x[i] < low ? x[i] : low;
                high = x[i] > high ? x[i] : high;
            }
            uint16_t *where = scale + row * groups + g;
            zero[row * groups + g] = to_half(low);
            z = half_table[zero[row * groups + g]];
            *where = to_half((high - z) / 15);
            s = half_table[*where];
            if (!(s > 0)) *where = to_half(s = 1);
            uint8_t q[GROUP];
            for (int i = 0; i < GROUP; i++) {
                float level = rintf((x[i] - z) / s);
                q[i] = (uint8_t)(level < 0 ? 0 : level > 15 ? 15 : level);
            }
            for (int i = 0; i < GROUP / 2; i++) out[at / 2 + i] = q[i] | q[i + 16] << 4;
        }
    }
}

/* Rows of `groups` groups of `words` 32-bit words each, as tiles of 8 rows: the same word
 * of 8 rows side by side. */
void to_tiles(
    const uint32_t *from, int64_t n, int64_t groups, int64_t words, uint32_t *to,
    int64_t threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t tile = 0; tile < n / ROWS; tile++)
        for (int64_t i = 0; i < groups * words; i++)
            for (int64_t r = 0; r < ROWS; r++)
                to[(tile * groups * words + i) * ROWS + r] =
                    from[(tile * ROWS + r) * groups * words + i];
}
