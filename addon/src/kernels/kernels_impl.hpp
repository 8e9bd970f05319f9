// Bodies of the kernels; included once by each kernels_<isa>.cpp, which sets MF_KERNELS_NAME and MF_KERNELS_SYMBOL.
#include <limits>

#include "kernels.hpp"
#include "simd.hpp"

namespace mf {
namespace {

using simd::V;
using simd::W;

inline float weight_at(const uint16_t * p) { return simd::half_to_float(*p); }

// TOKENS rows of x against RANKS rows of a, both over the whole input width.
template <int TOKENS, int RANKS>
inline void dot_block(const float * x, std::size_t x_stride, const uint16_t * a, int in, float * u, std::size_t u_stride) {
    V acc[TOKENS][RANKS];
    for (auto & row : acc) {
        for (auto & v : row) {
            v = simd::zero();
        }
    }
    int i = 0;
    for (; i + W <= in; i += W) {
        V w[RANKS];
        for (int r = 0; r < RANKS; ++r) {
            w[r] = simd::load_half(a + static_cast<std::size_t>(r) * in + i);
        }
        for (int t = 0; t < TOKENS; ++t) {
            const V xv = simd::load(x + t * x_stride + i);
            for (int r = 0; r < RANKS; ++r) {
                acc[t][r] = simd::fma(xv, w[r], acc[t][r]);
            }
        }
    }
    for (int t = 0; t < TOKENS; ++t) {
        for (int r = 0; r < RANKS; ++r) {
            float total = simd::sum(acc[t][r]);
            for (int j = i; j < in; ++j) {
                total += x[t * x_stride + j] * weight_at(a + static_cast<std::size_t>(r) * in + j);
            }
            u[t * u_stride + r] = total;
        }
    }
}

template <int TOKENS>
inline void dot_rows(const float * x, std::size_t x_stride, const uint16_t * a, int in, int r0, int r1, float * u,
                     std::size_t u_stride) {
    int r = r0;
    for (; r + 4 <= r1; r += 4) {
        dot_block<TOKENS, 4>(x, x_stride, a + static_cast<std::size_t>(r) * in, in, u + r, u_stride);
    }
    for (; r < r1; ++r) {
        dot_block<TOKENS, 1>(x, x_stride, a + static_cast<std::size_t>(r) * in, in, u + r, u_stride);
    }
}

void lora_a(const float * x, std::size_t x_stride, int rows, const uint16_t * a, int in, int r0, int r1, float * u,
            std::size_t u_stride) {
    int t = 0;
    for (; t + 4 <= rows; t += 4) {
        dot_rows<4>(x + t * x_stride, x_stride, a, in, r0, r1, u + t * u_stride, u_stride);
    }
    for (; t < rows; ++t) {
        dot_rows<1>(x + t * x_stride, x_stride, a, in, r0, r1, u + t * u_stride, u_stride);
    }
}

template <int TOKENS, int VECTORS>
inline void axpy_block(const float * u, std::size_t u_stride, const uint16_t * bt, int rank, int out, float * y,
                       std::size_t y_stride) {
    V acc[TOKENS][VECTORS];
    for (int t = 0; t < TOKENS; ++t) {
        for (int v = 0; v < VECTORS; ++v) {
            acc[t][v] = simd::load(y + t * y_stride + v * W);
        }
    }
    for (int r = 0; r < rank; ++r) {
        const uint16_t * row = bt + static_cast<std::size_t>(r) * out;
        V                w[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            w[v] = simd::load_half(row + v * W);
        }
        for (int t = 0; t < TOKENS; ++t) {
            const V s = simd::set1(u[t * u_stride + r]);
            for (int v = 0; v < VECTORS; ++v) {
                acc[t][v] = simd::fma(s, w[v], acc[t][v]);
            }
        }
    }
    for (int t = 0; t < TOKENS; ++t) {
        for (int v = 0; v < VECTORS; ++v) {
            simd::store(y + t * y_stride + v * W, acc[t][v]);
        }
    }
}

template <int TOKENS>
inline void axpy_rows(const float * u, std::size_t u_stride, const uint16_t * bt, int rank, int out, int o0, int o1, float * y,
                      std::size_t y_stride) {
    int o = o0;
    for (; o + 4 * W <= o1; o += 4 * W) {
        axpy_block<TOKENS, 4>(u, u_stride, bt + o, rank, out, y + o, y_stride);
    }
    for (; o + W <= o1; o += W) {
        axpy_block<TOKENS, 1>(u, u_stride, bt + o, rank, out, y + o, y_stride);
    }
    for (; o < o1; ++o) {
        for (int t = 0; t < TOKENS; ++t) {
            float total = y[t * y_stride + o];
            for (int r = 0; r < rank; ++r) {
                total += u[t * u_stride + r] * weight_at(bt + static_cast<std::size_t>(r) * out + o);
            }
            y[t * y_stride + o] = total;
        }
    }
}

void lora_b(const float * u, std::size_t u_stride, int rows, const uint16_t * bt, int rank, int out, int o0, int o1, float * y,
            std::size_t y_stride) {
    int t = 0;
    for (; t + 4 <= rows; t += 4) {
        axpy_rows<4>(u + t * u_stride, u_stride, bt, rank, out, o0, o1, y + t * y_stride, y_stride);
    }
    for (; t < rows; ++t) {
        axpy_rows<1>(u + t * u_stride, u_stride, bt, rank, out, o0, o1, y + t * y_stride, y_stride);
    }
}

void block_sums(const float * x, int in, float * s) {
    for (int b = 0; b < in / 32; ++b) {
        V largest = simd::abs(simd::load(x + b * 32));
        for (int i = W; i < 32; i += W) {
            largest = simd::max(largest, simd::abs(simd::load(x + b * 32 + i)));
        }
        const float top   = simd::max_of(largest);
        const float scale = simd::half_rounded(top / 127.0F);
        // A scale too small for float16 is zero; 127 / top may then be infinite, and zero times that is not a number.
        const V inverse = simd::set1(scale != 0.0F ? 127.0F / top : 0.0F);
        V       acc     = simd::zero();
        for (int i = 0; i < 32; i += W) {
            acc = simd::add(acc, simd::round(simd::mul(simd::load(x + b * 32 + i), inverse)));
        }
        s[b] = scale * simd::sum(acc);
    }
}

inline void widen(const void * from, bool is_f32, std::size_t at, float * to, int n) {
    if (is_f32) {
        std::memcpy(to, static_cast<const float *>(from) + at, sizeof(float) * n);
        return;
    }
    const uint16_t * halves = static_cast<const uint16_t *>(from) + at;
    for (int i = 0; i < n; i += W) {
        simd::store(to + i, simd::load_half(halves + i));
    }
}

// Products of one query with KEYS consecutive keys; several at a time hide the latency of the sums.
template <int KEYS> inline void dots(const float * q, const float * keys, int n, float scale, float * out) {
    V acc[KEYS];
    for (auto & a : acc) {
        a = simd::zero();
    }
    for (int i = 0; i < n; i += W) {
        const V x = simd::load(q + i);
        for (int k = 0; k < KEYS; ++k) {
            acc[k] = simd::fma(x, simd::load(keys + static_cast<std::size_t>(k) * n + i), acc[k]);
        }
    }
    for (int k = 0; k < KEYS; ++k) {
        out[k] = simd::sum(acc[k]) * scale;
    }
}

// acc[0..n) = acc * rescale + sum_k p[k] * v[k][0..n)
template <int VECTORS>
inline void weighted_sum(const float * p, const float * v, int keys, int head_dim, float rescale, float * acc) {
    V total[VECTORS];
    for (int i = 0; i < VECTORS; ++i) {
        total[i] = simd::mul(simd::load(acc + i * W), simd::set1(rescale));
    }
    for (int k = 0; k < keys; ++k) {
        const V w = simd::set1(p[k]);
        for (int i = 0; i < VECTORS; ++i) {
            total[i] = simd::fma(w, simd::load(v + static_cast<std::size_t>(k) * head_dim + i * W), total[i]);
        }
    }
    for (int i = 0; i < VECTORS; ++i) {
        simd::store(acc + i * W, total[i]);
    }
}

// Softmax attention in tiles with a running maximum (Milakov & Gimelshein 2018; Rabe & Staats 2021), float32 throughout.
// A row sees the keys of its own sequence up to its own position, in order, so its result does not depend on what else
// is in the batch.
void attention(const AttentionBlock & b, float * scratch) {
    const int queries = b.rows * b.group;
    const int d       = b.head_dim;
    float *   kf      = scratch;
    float *   vf      = kf + static_cast<std::size_t>(ATTENTION_TILE) * d;
    float *   acc     = vf + static_cast<std::size_t>(ATTENTION_TILE) * d;
    float *   p       = acc + static_cast<std::size_t>(queries) * d;
    float *   running = p + ATTENTION_TILE;
    float *   total   = running + queries;
    for (int i = 0; i < queries; ++i) {
        running[i] = -std::numeric_limits<float>::infinity();
        total[i]   = 0;
    }
    std::memset(acc, 0, sizeof(float) * queries * d);

    const int last  = b.positions[b.rows - 1];
    int       first = b.window > 0 ? b.positions[0] - b.window + 1 : 0;
    first           = first < 0 ? 0 : first - first % ATTENTION_TILE;  // the same tiles whatever the batch
    for (int tile = first; tile <= last; tile += ATTENTION_TILE) {
        const int keys = last + 1 - tile < ATTENTION_TILE ? last + 1 - tile : ATTENTION_TILE;
        // Cells lie anywhere, which no hardware prefetcher foresees: ask for the next tile while this one is computed.
        const int ahead = last + 1 - tile - ATTENTION_TILE;
        for (int k = 0; k < (ahead < ATTENTION_TILE ? ahead : ATTENTION_TILE); ++k) {
            const std::size_t size = b.cache_f32 ? 4 : 2;
            const std::size_t at   = (static_cast<std::size_t>(b.cells[tile + ATTENTION_TILE + k]) * b.cell_stride +
                                    static_cast<std::size_t>(b.kv_head) * d) *
                                   size;
            for (std::size_t line = 0; line < static_cast<std::size_t>(d) * size; line += 64) {
                simd::prefetch(static_cast<const char *>(b.k) + at + line);
                simd::prefetch(static_cast<const char *>(b.v) + at + line);
            }
        }
        for (int k = 0; k < keys; ++k) {
            const std::size_t at =
                static_cast<std::size_t>(b.cells[tile + k]) * b.cell_stride + static_cast<std::size_t>(b.kv_head) * d;
            widen(b.k, b.cache_f32, at, kf + static_cast<std::size_t>(k) * d, d);
            widen(b.v, b.cache_f32, at, vf + static_cast<std::size_t>(k) * d, d);
        }
        for (int row = 0; row < b.rows; ++row) {
            const int position = b.positions[row];
            const int seen     = position + 1 - tile < keys ? position + 1 - tile : keys;
            int       skip     = b.window > 0 ? position - b.window + 1 - tile : 0;
            skip               = skip < 0 ? 0 : skip;
            if (seen <= skip) {
                continue;
            }
            for (int h = 0; h < b.group; ++h) {
                const int     query = row * b.group + h;
                const float * q     = b.q + row * b.q_stride + static_cast<std::size_t>(b.head_first + h) * d;
                float         best  = running[query];
                int           k     = skip;
                for (; k + 8 <= seen; k += 8) {
                    dots<8>(q, kf + static_cast<std::size_t>(k) * d, d, b.scale, p + k);
                }
                for (; k < seen; ++k) {
                    dots<1>(q, kf + static_cast<std::size_t>(k) * d, d, b.scale, p + k);
                }
                for (k = skip; k < seen; ++k) {
                    best = p[k] > best ? p[k] : best;
                }
                for (k = 0; k < skip; ++k) {
                    p[k] = -std::numeric_limits<float>::infinity();
                }
                for (k = seen; k < ATTENTION_TILE; ++k) {
                    p[k] = -std::numeric_limits<float>::infinity();
                }
                const float rescale = std::exp(running[query] - best);
                V           sum     = simd::zero();
                for (k = 0; k < ATTENTION_TILE; k += W) {
                    const V shifted = simd::sub(simd::load(p + k), simd::set1(best));
                    simd::store(p + k, simd::exp(shifted));
                }
                for (k = 0; k < skip; ++k) {
                    p[k] = 0;
                }
                for (k = seen; k < ATTENTION_TILE; ++k) {
                    p[k] = 0;
                }
                for (k = 0; k < ATTENTION_TILE; k += W) {
                    sum = simd::add(sum, simd::load(p + k));
                }
                total[query]   = total[query] * rescale + simd::sum(sum);
                running[query] = best;
                float * out    = acc + static_cast<std::size_t>(query) * d;
                int     i      = 0;
                for (; i + 4 * W <= d; i += 4 * W) {
                    weighted_sum<4>(p + skip, vf + static_cast<std::size_t>(skip) * d + i, seen - skip, d, rescale, out + i);
                }
                for (; i < d; i += W) {
                    weighted_sum<1>(p + skip, vf + static_cast<std::size_t>(skip) * d + i, seen - skip, d, rescale, out + i);
                }
            }
        }
    }
    for (int row = 0; row < b.rows; ++row) {
        for (int h = 0; h < b.group; ++h) {
            const int query   = row * b.group + h;
            const V   inverse = simd::set1(1.0F / total[query]);
            float *   out     = b.out + row * b.out_stride + static_cast<std::size_t>(b.head_first + h) * d;
            for (int i = 0; i < d; i += W) {
                simd::store(out + i, simd::mul(simd::load(acc + static_cast<std::size_t>(query) * d + i), inverse));
            }
        }
    }
}

void to_half(const float * x, std::size_t n, uint16_t * half) {
    std::size_t i = 0;
    for (; i + W <= n; i += W) {
        simd::store_half(half + i, simd::load(x + i));
    }
    for (; i < n; ++i) {
        half[i] = simd::float_to_half(x[i]);
    }
}

int argmax(const float * x, int n, float * best) {
    V   m = simd::set1(-std::numeric_limits<float>::infinity());
    int i = 0;
    for (; i + W <= n; i += W) {
        m = simd::max(m, simd::load(x + i));
    }
    float top = simd::max_of(m);
    for (; i < n; ++i) {
        top = x[i] > top ? x[i] : top;
    }
    *best = top;
    for (int j = 0; j < n; ++j) {
        if (x[j] == top) {
            return j;
        }
    }
    return 0;
}

double exp_sum(const float * x, int n, float top, float inv_temperature) {
    const V shift = simd::set1(top);
    const V scale = simd::set1(inv_temperature);
    double  total = 0;
    int     i     = 0;
    while (i + W <= n) {
        // Short float32 runs added in double: a vocabulary of 150,000 stays exact to about 1e-7.
        V acc = simd::zero();
        for (int j = 0; j < 64 && i + W <= n; ++j, i += W) {
            acc = simd::add(acc, simd::exp(simd::mul(simd::sub(simd::load(x + i), shift), scale)));
        }
        total += simd::sum(acc);
    }
    for (; i < n; ++i) {
        total += std::exp((x[i] - top) * inv_temperature);
    }
    return total;
}

#include "training_impl.hpp"

#if defined(__AVX512VNNI__)

void quantize(const float * x, int in, int8_t * q, float * scale, float * sum, int32_t * count) {
    for (int b = 0; b < in / 32; ++b) {
        const V     low    = simd::load(x + b * 32);
        const V     high   = simd::load(x + b * 32 + 16);
        const float top    = simd::max_of(simd::max(simd::abs(low), simd::abs(high)));
        scale[b]           = simd::half_rounded(top / 127.0F);
        const V    inverse = simd::set1(scale[b] != 0.0F ? 127.0F / top : 0.0F);  // as in block_sums
        const auto a       = _mm512_cvtps_epi32(simd::mul(low, inverse));
        const auto c       = _mm512_cvtps_epi32(simd::mul(high, inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(q + b * 32), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(q + b * 32 + 16), _mm512_cvtepi32_epi8(c));
        count[b] = _mm512_reduce_add_epi32(_mm512_add_epi32(a, c));
        sum[b]   = scale[b] * static_cast<float>(count[b]);
    }
}

// One group of 16 output rows for TOKENS rows of x. The weights of a group stay in the first-level cache while all rows of
// x pass; each is expanded once per TOKENS rows.
template <int TOKENS, bool FOUR_BITS, bool OFFSET>
inline void packed_group(const uint8_t * record, std::size_t record_bytes, int zero, const QuantizedRows & x, int row, float * y,
                         std::size_t y_stride) {
    const int blocks = x.in / 32;
    V         acc[TOKENS];
    for (auto & a : acc) {
        a = simd::zero();
    }
    const __m512i nibble = _mm512_set1_epi8(15);
    for (int b = 0; b < blocks; ++b, record += record_bytes) {
        __m512i w[8];
        if (FOUR_BITS) {
            for (int j = 0; j < 4; ++j) {
                const __m512i both = _mm512_loadu_si512(record + 64 * j);
                w[j]               = _mm512_and_si512(both, nibble);
                w[j + 4]           = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            }
        } else {
            for (int j = 0; j < 8; ++j) {
                w[j] = _mm512_loadu_si512(record + 64 * j);
            }
        }
        const auto * scales = reinterpret_cast<const uint16_t *>(record + (FOUR_BITS ? 256 : 512));
        const V      scale  = simd::load_half(scales);
        const V      offset = OFFSET ? simd::load_half(scales + PACKED_ROWS) : simd::zero();
        for (int t = 0; t < TOKENS; ++t) {
            const std::size_t at   = static_cast<std::size_t>(row + t) * blocks + b;
            const int8_t *    q    = x.q + at * 32;
            __m512i           even = _mm512_set1_epi32(OFFSET ? 0 : -zero * x.count[at]);
            __m512i           odd  = _mm512_setzero_si512();
            for (int j = 0; j < 8; j += 2) {
                int32_t four;
                std::memcpy(&four, q + 4 * j, 4);
                even = _mm512_dpbusd_epi32(even, w[j], _mm512_set1_epi32(four));
                std::memcpy(&four, q + 4 * j + 4, 4);
                odd = _mm512_dpbusd_epi32(odd, w[j + 1], _mm512_set1_epi32(four));
            }
            const V product = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
            acc[t]          = simd::fma(product, simd::mul(scale, simd::set1(x.scale[at])), acc[t]);
            if (OFFSET) {
                acc[t] = simd::fma(offset, simd::set1(x.sum[at]), acc[t]);
            }
        }
    }
    for (int t = 0; t < TOKENS; ++t) {
        simd::store(y + (row + t) * y_stride, acc[t]);
    }
}

template <bool FOUR_BITS, bool OFFSET>
void packed_groups(const PackedMatrix & w, int group0, int group1, const QuantizedRows & x, int rows, float * y,
                   std::size_t y_stride) {
    const std::size_t record = w.record_bytes();
    for (int group = group0; group < group1; ++group) {
        const uint8_t * data = w.data + group * w.group_bytes();
        float *         out  = y + static_cast<std::size_t>(group) * PACKED_ROWS;
        int             row  = 0;
        for (; row + 8 <= rows; row += 8) {
            packed_group<8, FOUR_BITS, OFFSET>(data, record, w.zero, x, row, out, y_stride);
        }
        switch (rows - row) {
            case 7:
                packed_group<7, FOUR_BITS, OFFSET>(data, record, w.zero, x, row, out, y_stride);
                break;
            case 6:
                packed_group<6, FOUR_BITS, OFFSET>(data, record, w.zero, x, row, out, y_stride);
                break;
            case 5:
                packed_group<5, FOUR_BITS, OFFSET>(data, record, w.zero, x, row, out, y_stride);
                break;
            case 4:
                packed_group<4, FOUR_BITS, OFFSET>(data, record, w.zero, x, row, out, y_stride);
                break;
            case 3:
                packed_group<3, FOUR_BITS, OFFSET>(data, record, w.zero, x, row, out, y_stride);
                break;
            case 2:
                packed_group<2, FOUR_BITS, OFFSET>(data, record, w.zero, x, row, out, y_stride);
                break;
            case 1:
                packed_group<1, FOUR_BITS, OFFSET>(data, record, w.zero, x, row, out, y_stride);
                break;
            default:
                break;
        }
    }
}

// A row's sums run over the blocks in order whatever the batch, so its result does not depend on the other rows.
void packed_product(const PackedMatrix & w, int group0, int group1, const QuantizedRows & x, int rows, float * y,
                    std::size_t y_stride) {
    if (w.bits == 8) {
        packed_groups<false, false>(w, group0, group1, x, rows, y, y_stride);
    } else if (w.has_offset) {
        packed_groups<true, true>(w, group0, group1, x, rows, y, y_stride);
    } else {
        packed_groups<true, false>(w, group0, group1, x, rows, y, y_stride);
    }
}

#define MF_PACKED quantize, packed_product
#else
#define MF_PACKED nullptr, nullptr
#endif

}  // namespace

extern const Kernels MF_KERNELS_SYMBOL;
const Kernels        MF_KERNELS_SYMBOL = {
           MF_KERNELS_NAME, MF_PACKED, lora_a,  lora_b, block_sums, attention,  to_half, argmax,     exp_sum,
           gemm_nn,         gemm_nt,   gemm_tn, gate,   gate_back,  scaled_exp, dot,     add_scaled,
};

}  // namespace mf
