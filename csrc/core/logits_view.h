// Logits as every kernel gets them: a pointer, sizes and strides.
#pragma once

#include <cstdint>

namespace cscl {

enum class DataType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// Logits [B, K, h, w] in any strides, evaluated at H x W pixels.
struct LogitsView {
  const void* data;
  DataType type;
  int64_t batch, classes, height, width;                          // B, K, h, w
  int64_t stride_batch, stride_class, stride_row, stride_column;  // in elements
  int64_t out_height, out_width;  // H, W; equal to h, w: the logits as they are
  bool align_corners;             // the convention of the bilinear upsampling to H x W
};

}  // namespace cscl
