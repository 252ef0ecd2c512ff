// What the bindings of the CPU's and of the GPU's kernels share.
#pragma once

#include <cstdint>
#include <tuple>

#include "core/logits_view.h"

// Every argument that is an address is an integer in Python.
// (B, K, h, w) and (batch, class, row, column) as they come from a tensor's shape and strides.
using Four = std::tuple<int64_t, int64_t, int64_t, int64_t>;

inline cscl::LogitsView logits_view(uintptr_t data, int type, const Four& shape,
                                    const Four& strides, int64_t out_height, int64_t out_width,
                                    bool align_corners) {
  cscl::LogitsView view;
  view.data = reinterpret_cast<const void*>(data);
  view.type = static_cast<cscl::DataType>(type);
  std::tie(view.batch, view.classes, view.height, view.width) = shape;
  std::tie(view.stride_batch, view.stride_class, view.stride_row, view.stride_column) = strides;
  view.out_height = out_height;
  view.out_width = out_width;
  view.align_corners = align_corners;
  return view;
}

// Features and their labels as a tuple: features (data, type, shape, strides), labels (data, type,
// number of classes, strides; type < 0: hard ones, the class stride means nothing), and where the
// class and the weight of each location go.
using Labelled =
    std::tuple<uintptr_t, int, Four, Four, uintptr_t, int, int64_t, Four, uintptr_t, uintptr_t>;
