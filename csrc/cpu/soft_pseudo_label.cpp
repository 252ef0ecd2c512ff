#include <cmath>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace cscl::cpu::CSCL_ISA {
namespace {
float load(const void* p, int64_t i, DataType t) {
  if (t == DataType::float32) return static_cast<const float*>(p)[i];
  uint16_t h = static_cast<const uint16_t*>(p)[i];
  uint32_t u;
  float f;
  if (t == DataType::bfloat16) {
    u = uint32_t(h) << 16;
    memcpy(&f, &u, 4);
    return f;
  }
  const int e = (h >> 10) & 31, m = h & 1023;
  f = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? std::ldexp(float(m), -24) : std::ldexp(float(m + 1024), e - 25);
  return h >> 15 ? -f : f;
}
void store(void* p, int64_t i, DataType t, float f) {
  if (t == DataType::float32) {
    static_cast<float*>(p)[i] = f;
    return;
  }
  uint32_t u;
  memcpy(&u, &f, 4);
  uint16_t h;
  if (t == DataType::bfloat16) {
    h = uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  } else if (f < 6.103515625e-05f) {
    h = uint16_t(std::nearbyint(std::ldexp(f, 24)));
  } else {
    u += 0xfff + ((u >> 13) & 1);
    h = uint16_t((u >> 13) - (112 << 10));
  }
  static_cast<uint16_t*>(p)[i] = h;
}
void axis(int64_t i, int64_t n, int64_t N, bool align, int64_t& i0, int64_t& i1, float& w0, float& w1) {
  double c = align ? (N > 1 ? double(i) * double(n - 1) / double(N - 1) : 0.0)
                   : (double(i) + 0.5) * double(n) / double(N) - 0.5;
  if (c < 0) c = 0;
  i0 = int64_t(c);
  if (i0 > n - 1) i0 = n - 1;
  i1 = i0 < n - 1 ? i0 + 1 : i0;
  w1 = float(c - double(i0));
  w0 = float(1.0 - (c - double(i0)));
}
}  // namespace

void soft_pseudo_labels(const SoftPseudoLabelCall& call, int threads) {
  const LogitsView& v = call.logits;
  const int64_t K = v.classes, H = v.out_height, W = v.out_width;
  const bool up = H != v.height || W != v.width;
  parallel_for(v.batch * H, threads, [&](int64_t task, int) {
    const int64_t b = task / H, y = task % H;
    double a[256];
    float z[256];
    for (int64_t x = 0; x < W; ++x) {
      int64_t y0 = y, y1 = y, x0 = x, x1 = x;
      float r0 = 1, r1 = 0, c0 = 1, c1 = 0;
      if (up) {
        axis(y, v.height, H, v.align_corners, y0, y1, r0, r1);
        axis(x, v.width, W, v.align_corners, x0, x1, c0, c1);
      }
      bool finite = true;
      double m = -INFINITY;
      for (int64_t k = 0; k < K; ++k) {
        auto at = [&](int64_t yy, int64_t xx) {
          return load(v.data, b * v.stride_batch + k * v.stride_class + yy * v.stride_row + xx * v.stride_column, v.type);
        };
        z[k] = up ? c0 * (r0 * at(y0, x0) + r1 * at(y1, x0)) + c1 * (r0 * at(y0, x1) + r1 * at(y1, x1)) : at(y, x);
        finite = finite && std::isfinite(z[k]);
        if (z[k] > m) m = z[k];
      }
      double S = 0, best = -INFINITY, T = 0;
      int64_t arg = 0;
      for (int64_t k = 0; k < K; ++k) S += std::exp(z[k] - m);
      for (int64_t k = 0; k < K; ++k) {
        a[k] = (z[k] - m - std::log(S) - std::log(double(call.thresholds[k]))) / call.gamma;
        if (a[k] > best) best = a[k], arg = k;
      }
      for (int64_t k = 0; k < K; ++k) T += std::exp(a[k] - best);
      const bool kept = finite && best + std::log(T) > 0;
      call.hard[(b * H + y) * W + x] = kept ? arg : 255;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t i = call.soft_channels_last ? ((b * H + y) * W + x) * K + k : ((b * K + k) * H + y) * W + x;
        store(call.soft, i, v.type, kept ? float(std::exp(a[k] - best) / T) : 0.0f);
      }
    }
  });
}
}  // namespace cscl::cpu::CSCL_ISA
