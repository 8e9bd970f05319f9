// Bodies of the training kernels; included by kernels_impl.hpp, within its namespace.
//
// The three products of a dense layer in float32. Each element is summed by one thread in one order, whatever the number of
// rows or threads, so training is the same to the bit on any number of cores.

// Y[t][n] += sum_k U[t][k] B[k][n] for a tile of TOKENS rows and VECTORS vectors.
template <int TOKENS, int VECTORS>
inline void nn_tile(const float * u, std::size_t u_stride, const float * b, std::size_t b_stride, int inner, float * y,
                    std::size_t y_stride) {
    V acc[TOKENS][VECTORS];
    for (int t = 0; t < TOKENS; ++t) {
        for (int v = 0; v < VECTORS; ++v) {
            acc[t][v] = simd::load(y + t * y_stride + v * W);
        }
    }
    for (int k = 0; k < inner; ++k) {
        V w[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            w[v] = simd::load(b + k * b_stride + v * W);
        }
        for (int t = 0; t < TOKENS; ++t) {
            const V s = simd::set1(u[t * u_stride + k]);
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
inline void nn_rows(const float * u, std::size_t u_stride, const float * b, std::size_t b_stride, int inner, int n0, int n1,
                    float * y, std::size_t y_stride) {
    int n = n0;
    for (; n + 4 * W <= n1; n += 4 * W) {
        nn_tile<TOKENS, 4>(u, u_stride, b + n, b_stride, inner, y + n, y_stride);
    }
    for (; n + W <= n1; n += W) {
        nn_tile<TOKENS, 1>(u, u_stride, b + n, b_stride, inner, y + n, y_stride);
    }
    for (; n < n1; ++n) {
        for (int t = 0; t < TOKENS; ++t) {
            float total = y[t * y_stride + n];
            for (int k = 0; k < inner; ++k) {
                total = std::fma(u[t * u_stride + k], b[k * b_stride + n], total);
            }
            y[t * y_stride + n] = total;
        }
    }
}

void gemm_nn(const float * u, std::size_t u_stride, int rows, const float * b, std::size_t b_stride, int inner, int n0, int n1,
             float * y, std::size_t y_stride) {
    int t = 0;
    for (; t + 4 <= rows; t += 4) {
        nn_rows<4>(u + t * u_stride, u_stride, b, b_stride, inner, n0, n1, y + t * y_stride, y_stride);
    }
    for (; t < rows; ++t) {
        nn_rows<1>(u + t * u_stride, u_stride, b, b_stride, inner, n0, n1, y + t * y_stride, y_stride);
    }
}

// U[t][r] = scale * sum_n X[t][n] A[r][n]
template <int TOKENS, int RANKS>
inline void nt_tile(const float * x, std::size_t x_stride, const float * a, std::size_t a_stride, int width, float scale,
                    float * u, std::size_t u_stride) {
    V acc[TOKENS][RANKS];
    for (auto & row : acc) {
        for (auto & v : row) {
            v = simd::zero();
        }
    }
    int i = 0;
    for (; i + W <= width; i += W) {
        V w[RANKS];
        for (int r = 0; r < RANKS; ++r) {
            w[r] = simd::load(a + r * a_stride + i);
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
            for (int j = i; j < width; ++j) {
                total = std::fma(x[t * x_stride + j], a[r * a_stride + j], total);
            }
            u[t * u_stride + r] = total * scale;
        }
    }
}

template <int TOKENS>
inline void nt_rows(const float * x, std::size_t x_stride, const float * a, std::size_t a_stride, int width, int ranks,
                    float scale, float * u, std::size_t u_stride) {
    int r = 0;
    for (; r + 4 <= ranks; r += 4) {
        nt_tile<TOKENS, 4>(x, x_stride, a + r * a_stride, a_stride, width, scale, u + r, u_stride);
    }
    for (; r < ranks; ++r) {
        nt_tile<TOKENS, 1>(x, x_stride, a + r * a_stride, a_stride, width, scale, u + r, u_stride);
    }
}

void gemm_nt(const float * x, std::size_t x_stride, int rows, const float * a, std::size_t a_stride, int width, int ranks,
             float scale, float * u, std::size_t u_stride) {
    int t = 0;
    for (; t + 4 <= rows; t += 4) {
        nt_rows<4>(x + t * x_stride, x_stride, a, a_stride, width, ranks, scale, u + t * u_stride, u_stride);
    }
    for (; t < rows; ++t) {
        nt_rows<1>(x + t * x_stride, x_stride, a, a_stride, width, ranks, scale, u + t * u_stride, u_stride);
    }
}

// G[r][n] += sum_t U[t][r] X[t][n]
template <int RANKS, int VECTORS>
inline void tn_tile(const float * u, std::size_t u_stride, const float * x, std::size_t x_stride, int rows, float * g,
                    std::size_t g_stride) {
    V acc[RANKS][VECTORS];
    for (int r = 0; r < RANKS; ++r) {
        for (int v = 0; v < VECTORS; ++v) {
            acc[r][v] = simd::load(g + r * g_stride + v * W);
        }
    }
    for (int t = 0; t < rows; ++t) {
        V xv[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            xv[v] = simd::load(x + t * x_stride + v * W);
        }
        for (int r = 0; r < RANKS; ++r) {
            const V s = simd::set1(u[t * u_stride + r]);
            for (int v = 0; v < VECTORS; ++v) {
                acc[r][v] = simd::fma(s, xv[v], acc[r][v]);
            }
        }
    }
    for (int r = 0; r < RANKS; ++r) {
        for (int v = 0; v < VECTORS; ++v) {
            simd::store(g + r * g_stride + v * W, acc[r][v]);
        }
    }
}

template <int RANKS>
inline void tn_ranks(const float * u, std::size_t u_stride, const float * x, std::size_t x_stride, int rows, int n0, int n1,
                     float * g, std::size_t g_stride) {
    int n = n0;
    for (; n + 2 * W <= n1; n += 2 * W) {
        tn_tile<RANKS, 2>(u, u_stride, x + n, x_stride, rows, g + n, g_stride);
    }
    for (; n + W <= n1; n += W) {
        tn_tile<RANKS, 1>(u, u_stride, x + n, x_stride, rows, g + n, g_stride);
    }
    for (; n < n1; ++n) {
        for (int r = 0; r < RANKS; ++r) {
            float total = g[r * g_stride + n];
            for (int t = 0; t < rows; ++t) {
                total = std::fma(u[t * u_stride + r], x[t * x_stride + n], total);
            }
            g[r * g_stride + n] = total;
        }
    }
}

void gemm_tn(const float * u, std::size_t u_stride, const float * x, std::size_t x_stride, int rows, int ranks, int n0, int n1,
             float * g, std::size_t g_stride) {
    int r = 0;
    for (; r + 8 <= ranks; r += 8) {
        tn_ranks<8>(u + r, u_stride, x, x_stride, rows, n0, n1, g + r * g_stride, g_stride);
    }
    for (; r + 4 <= ranks; r += 4) {
        tn_ranks<4>(u + r, u_stride, x, x_stride, rows, n0, n1, g + r * g_stride, g_stride);
    }
    for (; r < ranks; ++r) {
        tn_ranks<1>(u + r, u_stride, x, x_stride, rows, n0, n1, g + r * g_stride, g_stride);
    }
}

inline constexpr int GATE_TILE = 64;

// e^-|k x| of up to GATE_TILE numbers; simd::exp is made for arguments that are not positive.
inline void decay(const float * x, float k, int n, float * e) {
    float padded[GATE_TILE] = {};
    std::memcpy(padded, x, sizeof(float) * n);
    for (int i = 0; i < GATE_TILE; i += W) {
        simd::store(e + i, simd::exp(simd::mul(simd::abs(simd::load(padded + i)), simd::set1(-k))));
    }
}

inline constexpr float GELU_A = 0.79788456080286536F;  // sqrt(2 / pi)
inline constexpr float GELU_B = 0.044715F;

// h = act(g) * u
void gate(const float * g, const float * u, int n, bool gelu, float * h) {
    float e[GATE_TILE];
    float inner[GATE_TILE];
    for (int i = 0; i < n; i += GATE_TILE) {
        const int m = n - i < GATE_TILE ? n - i : GATE_TILE;
        if (gelu) {
            for (int j = 0; j < m; ++j) {
                inner[j] = GELU_A * (g[i + j] + GELU_B * g[i + j] * g[i + j] * g[i + j]);
            }
            decay(inner, 2.0F, m, e);
            for (int j = 0; j < m; ++j) {
                const float magnitude = (1.0F - e[j]) / (1.0F + e[j]);
                const float tanh      = inner[j] < 0 ? -magnitude : magnitude;
                h[i + j]              = 0.5F * g[i + j] * (1.0F + tanh) * u[i + j];
            }
        } else {
            decay(g + i, 1.0F, m, e);
            for (int j = 0; j < m; ++j) {
                const float sigmoid = (g[i + j] < 0 ? e[j] : 1.0F) / (1.0F + e[j]);
                h[i + j]            = g[i + j] * sigmoid * u[i + j];
            }
        }
    }
}

// dg = dh * u * act'(g), du = dh * act(g); dg and du may be dh's neighbours but not overlap the inputs.
void gate_back(const float * g, const float * u, const float * dh, int n, bool gelu, float * dg, float * du) {
    float e[GATE_TILE];
    float inner[GATE_TILE];
    for (int i = 0; i < n; i += GATE_TILE) {
        const int m = n - i < GATE_TILE ? n - i : GATE_TILE;
        if (gelu) {
            for (int j = 0; j < m; ++j) {
                inner[j] = GELU_A * (g[i + j] + GELU_B * g[i + j] * g[i + j] * g[i + j]);
            }
            decay(inner, 2.0F, m, e);
            for (int j = 0; j < m; ++j) {
                const float x         = g[i + j];
                const float magnitude = (1.0F - e[j]) / (1.0F + e[j]);
                const float tanh      = inner[j] < 0 ? -magnitude : magnitude;
                const float slope =
                    0.5F * (1.0F + tanh) + 0.5F * x * (1.0F - tanh * tanh) * GELU_A * (1.0F + 3.0F * GELU_B * x * x);
                du[i + j] = dh[i + j] * 0.5F * x * (1.0F + tanh);
                dg[i + j] = dh[i + j] * u[i + j] * slope;
            }
        } else {
            decay(g + i, 1.0F, m, e);
            for (int j = 0; j < m; ++j) {
                const float x       = g[i + j];
                const float sigmoid = (x < 0 ? e[j] : 1.0F) / (1.0F + e[j]);
                du[i + j]           = dh[i + j] * x * sigmoid;
                dg[i + j]           = dh[i + j] * u[i + j] * sigmoid * (1.0F + x * (1.0F - sigmoid));
            }
        }
    }
}

// x[i] = factor * e^(x[i] - top), in place.
void scaled_exp(float * x, int n, float top, float factor) {
    const V shift = simd::set1(top);
    const V scale = simd::set1(factor);
    int     i     = 0;
    for (; i + W <= n; i += W) {
        simd::store(x + i, simd::mul(simd::exp(simd::sub(simd::load(x + i), shift)), scale));
    }
    for (; i < n; ++i) {
        x[i] = std::exp(x[i] - top) * factor;
    }
}

// sum_i x[i] y[i]
float dot(const float * x, const float * y, int n) {
    V   acc = simd::zero();
    int i   = 0;
    for (; i + W <= n; i += W) {
        acc = simd::fma(simd::load(x + i), simd::load(y + i), acc);
    }
    float total = simd::sum(acc);
    for (; i < n; ++i) {
        total = std::fma(x[i], y[i], total);
    }
    return total;
}

// y += k x
void add_scaled(const float * x, float k, int n, float * y) {
    const V s = simd::set1(k);
    int     i = 0;
    for (; i + W <= n; i += W) {
        simd::store(y + i, simd::fma(s, simd::load(x + i), simd::load(y + i)));
    }
    for (; i < n; ++i) {
        y[i] = std::fma(k, x[i], y[i]);
    }
}
