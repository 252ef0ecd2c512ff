// What the tests of both losses share: logits in exactly as much memory as their strides need,
// their bilinear upsampling and its transpose in double, and the results of a walk with guards.
#pragma once

#include <array>

#include "check.h"
#include "threads.h"

enum class LossLayout { contiguous, channels_last, strided };

struct LossCase {
  int64_t batch, classes, height, width;
  int64_t out_height, out_width;
  bool align_corners;
  DataType type;
  LossLayout layout;
  bool broken;  // with NaN and infinite logits

  bool resized() const { return out_height != height || out_width != width; }
  int64_t pixels() const { return batch * out_height * out_width; }
  int64_t logits() const { return batch * classes * height * width; }
  std::string text(const char* operation) const {
    char line[200];
    std::snprintf(line, sizeof line, "%s [%ld, %ld, %ld, %ld] -> %ldx%ld%s %s layout %d%s",
                  operation, long(batch), long(classes), long(height), long(width),
                  long(out_height), long(out_width), align_corners ? " align_corners" : "",
                  name_of(type), int(layout), broken ? " with NaN and infinity" : "");
    return line;
  }
};

struct LossLogits {
  std::vector<unsigned char> memory;
  cscl::LogitsView view;

  LossLogits(const LossCase& c, uint64_t seed) {
    view = {nullptr, c.type, c.batch, c.classes,    c.height,    c.width,        0,
            0,       0,      0,       c.out_height, c.out_width, c.align_corners};
    if (c.layout == LossLayout::channels_last) {
      view.stride_class = 1;
      view.stride_column = c.classes;
      view.stride_row = c.width * c.classes;
      view.stride_batch = c.height * view.stride_row;
    } else {
      const int64_t gap = c.layout == LossLayout::strided ? 3 : 0;
      view.stride_column = c.layout == LossLayout::strided ? 2 : 1;
      view.stride_row = c.width * view.stride_column + gap;
      view.stride_class = c.height * view.stride_row + gap;
      view.stride_batch = c.classes * view.stride_class + gap;
    }
    const int64_t elements =
        c.logits() == 0 ? 0 : offset(c.batch - 1, c.classes - 1, c.height - 1, c.width - 1) + 1;
    memory.resize(static_cast<size_t>(elements) * size_of(c.type));
    Random random(seed + static_cast<uint64_t>(c.classes * 1009 + c.width));
    for (int64_t i = 0; i < elements; ++i) {
      double value = 3 * random.normal();
      const double dice = random.uniform();
      if (dice > 0.95) value += 12;
      if (c.broken && dice < 0.003)
        value = dice < 0.001 ? NAN : dice < 0.002 ? INFINITY : -INFINITY;
      to_bits(c.type, value, memory.data() + static_cast<size_t>(i) * size_of(c.type));
    }
    view.data = memory.data();
  }

  int64_t offset(int64_t b, int64_t k, int64_t y, int64_t x) const {
    return b * view.stride_batch + k * view.stride_class + y * view.stride_row +
           x * view.stride_column;
  }
  double at(int64_t b, int64_t k, int64_t y, int64_t x) const {
    return from_bits(view.type,
                     memory.data() + static_cast<size_t>(offset(b, k, y, x)) * size_of(view.type));
  }
};

// The two source lines of an output line and their weights, as PyTorch places them.
struct LossNeighbours {
  std::array<int64_t, 2> line;
  std::array<double, 2> weight;

  LossNeighbours(int64_t place, int64_t length, int64_t out_length, bool align_corners) {
    double at =
        align_corners
            ? (out_length > 1 ? double(place) * double(length - 1) / double(out_length - 1) : 0)
            : (double(place) + 0.5) * double(length) / double(out_length) - 0.5;
    at = std::max(at, 0.0);
    line[0] = std::min(static_cast<int64_t>(at), length - 1);
    line[1] = std::min(line[0] + 1, length - 1);
    weight = {1 - (at - double(line[0])), at - double(line[0])};
  }
};

// Calls visit(b, pixel, z) with the K logits of each pixel, and adds the gradient that it leaves in
// z (empty: none) to `gradient` [B, K, h, w].
template <typename Visit>
void for_each_pixel(const LossCase& c, const LossLogits& logits, std::vector<double>& gradient,
                    const Visit& visit) {
  gradient.assign(static_cast<size_t>(c.logits()), 0.0);
  for (int64_t pixel = 0; pixel < c.pixels(); ++pixel) {
    const int64_t x = pixel % c.out_width, y = pixel / c.out_width % c.out_height;
    const int64_t b = pixel / c.out_width / c.out_height;
    const LossNeighbours row(y, c.height, c.out_height, c.align_corners);
    const LossNeighbours column(x, c.width, c.out_width, c.align_corners);
    std::vector<double> z(static_cast<size_t>(c.classes), 0.0);
    const auto for_each_source = [&](const auto& use) {
      for (size_t i = 0; i < 2; ++i) {
        for (size_t j = 0; j < 2; ++j)
          use(row.line[i], column.line[j], row.weight[i] * column.weight[j]);
      }
    };
    for (int64_t k = 0; k < c.classes; ++k) {
      double& value = z[static_cast<size_t>(k)];
      if (c.resized()) {
        for_each_source(
            [&](int64_t r, int64_t s, double weight) { value += weight * logits.at(b, k, r, s); });
      } else {
        value = logits.at(b, k, y, x);
      }
    }
    visit(b, pixel, z);
    if (z.empty()) continue;
    for (int64_t k = 0; k < c.classes; ++k) {
      const int64_t plane = (b * c.classes + k) * c.height;
      const double g = z[static_cast<size_t>(k)];
      if (c.resized()) {
        for_each_source([&](int64_t r, int64_t s, double weight) {
          gradient[static_cast<size_t>((plane + r) * c.width + s)] += weight * g;
        });
      } else {
        gradient[static_cast<size_t>((plane + y) * c.width + x)] = g;
      }
    }
  }
}

struct LossOutcome {
  Guarded loss, count, gradient;
  explicit LossOutcome(const LossCase& c)
      : loss(4), count(8), gradient(static_cast<size_t>(c.logits()) * 4) {}
  bool operator==(const LossOutcome& other) const {
    return loss == other.loss && count == other.count && gradient == other.gradient;
  }
  cscl::cpu::LossResult result(bool channels_last) {
    return {static_cast<float*>(loss.data()),
            static_cast<int64_t*>(count.data()),
            static_cast<float*>(gradient.data()),
            channels_last,
            true,
            1.0f};
  }
};

inline double log_sum_exp(const std::vector<double>& values) {
  const double largest = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (const double value : values) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

// Loss, count and gradient against double precision: the contract's bounds. The gradient of a class
// is a difference of two float32 probabilities, each next to 1 where a pixel is certain: where all
// pixels are, the largest entry is itself of the order of that rounding, 3e-7 for each that reads
// it.
inline void check_outcome(const LossCase& c, const std::string& where, const LossOutcome& found,
                          bool channels_last, double loss, int64_t count,
                          const std::vector<double>& gradient) {
  check(found.loss.guards_intact() && found.count.guards_intact() && found.gradient.guards_intact(),
        where, "wrote outside a result");
  float value;
  int64_t counted;
  std::memcpy(&value, found.loss.data(), 4);
  std::memcpy(&counted, found.count.data(), 8);
  check(counted == count, where, "counts other pixels");
  const double mean = count > 0 ? loss / double(count) : 0;
  if (std::isfinite(mean)) {
    check(std::fabs(value - mean) <= 1e-5 * std::fabs(mean) + 1e-6, where, "the loss is off");
  } else {
    check(!std::isfinite(value), where, "the loss hides what is not finite");
  }
  double largest = 0;
  for (const double g : gradient) {
    if (std::isfinite(g)) largest = std::max(largest, std::fabs(g));
  }
  const int64_t plane = c.height * c.width;
  const double area = double(c.out_height * c.out_width) / double(std::max<int64_t>(plane, 1));
  const double readers = std::max(area, 1.0);
  for (int64_t i = 0; i < c.logits(); ++i) {
    const int64_t b = i / (c.classes * plane), k = i / plane % c.classes, at = i % plane;
    const int64_t place = channels_last ? (b * plane + at) * c.classes + k : i;
    float g;
    std::memcpy(&g, found.gradient.data() + static_cast<size_t>(place) * 4, 4);
    const double exact = gradient[static_cast<size_t>(i)];
    const double scale = count > 0 ? 1.0 / double(count) : 1.0;
    if (!std::isfinite(exact)) {
      check(!std::isfinite(g), where, "a gradient hides what is not finite");
    } else {
      check(std::fabs(g - scale * exact) <= scale * (1e-4 * largest + 3e-7 * readers), where,
            "a gradient is off");
    }
  }
}

// Calls test(case) for odd sizes, one pixel, 1 to 256 classes, every type and layout, no image.
template <typename Test>
long for_each_loss_case(const Test& test) {
  struct Shape {
    int64_t batch, classes, height, width;
  };
  const Shape shapes[] = {{1, 19, 7, 21}, {2, 2, 5, 17}, {1, 1, 3, 5},  {1, 256, 2, 9},
                          {2, 13, 1, 1},  {1, 16, 9, 3}, {1, 7, 11, 1}, {0, 19, 4, 4}};
  long cases = 0;
  for (const Shape& s : shapes) {
    struct Size {
      int64_t height, width;
      bool align_corners;
    };
    const Size sizes[] = {{s.height, s.width, false},
                          {3 * s.height + 1, 5 * s.width - 1, false},
                          {3 * s.height + 1, 5 * s.width - 1, true},
                          {std::max<int64_t>(s.height / 2, 1), s.width + 2, false}};
    for (const Size& size : sizes) {
      for (const DataType type : {DataType::float32, DataType::float16, DataType::bfloat16}) {
        for (const LossLayout layout :
             {LossLayout::contiguous, LossLayout::channels_last, LossLayout::strided}) {
          for (const bool broken : {false, true}) {
            // What a 16-bit type changes is how logits are read, and that is not in question here.
            if (type != DataType::float32 && (broken || layout == LossLayout::strided)) continue;
            test(LossCase{s.batch, s.classes, s.height, s.width, size.height, size.width,
                          size.align_corners, type, layout, broken});
            ++cases;
          }
        }
      }
    }
  }
  test(LossCase{1, 19, 17, 33, 128, 260, false, DataType::float32, LossLayout::contiguous, true});
  return cases + 1;
}
