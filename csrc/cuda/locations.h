// Where the locations n = (image, y, x) of a tensor of any strides lie.
#pragma once

#include "cuda/launch.h"

namespace cscl::cuda {

// Dimensions that follow each other without a gap are taken as one, so that a contiguous image has
// one dimension left, and channels-last images all together.
struct Locations {
  int64_t inner, middle;                              // sizes
  int64_t stride_inner, stride_middle, stride_outer;  // in elements
};

inline Locations locations_of(const LogitsView& view) {
  const int64_t sizes[3] = {view.width, view.height, view.batch};
  const int64_t strides[3] = {view.stride_column, view.stride_row, view.stride_batch};
  int64_t size[3] = {1, 1, 1}, stride[3] = {0, 0, 0};
  int count = 0;
  for (int i = 0; i < 3; ++i) {
    if (sizes[i] == 1) continue;
    if (count > 0 && strides[i] == size[count - 1] * stride[count - 1]) {
      size[count - 1] *= sizes[i];
    } else {
      size[count] = sizes[i];
      stride[count++] = strides[i];
    }
  }
  return {size[0], size[1], stride[0], stride[1], stride[2]};
}

// Quotient of two numbers >= 0; divisions of 64 bits are ten times as long as those of 32.
CSCL_D int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// A place among the locations that moves on without dividing.
class Cursor {
 public:
  CSCL_D Cursor(const Locations& in, int64_t n) {
    const int64_t line = n < in.inner ? 0 : quotient(n, in.inner);
    const int64_t block = line < in.middle ? 0 : quotient(line, in.middle);
    x_ = n - line * in.inner;
    y_ = line - block * in.middle;
    offset_ = x_ * in.stride_inner + y_ * in.stride_middle + block * in.stride_outer;
  }
  CSCL_D int64_t offset() const { return offset_; }  // in elements
  CSCL_D void advance(const Locations& in, int by) {
    x_ += by;
    offset_ += by * in.stride_inner;
    while (x_ >= in.inner) {
      x_ -= in.inner;
      offset_ += in.stride_middle - in.inner * in.stride_inner;
      if (++y_ == in.middle) {
        y_ = 0;
        offset_ += in.stride_outer - in.middle * in.stride_middle;
      }
    }
  }

 private:
  int64_t x_, y_, offset_;
};

}  // namespace cscl::cuda
