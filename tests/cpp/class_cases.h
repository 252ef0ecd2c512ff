// What the tests of the class centroids and of their divergence share: features and labels in
// exactly as much memory as their strides need, and their sums by class in double.
#pragma once

#include <algorithm>

#include "check.h"
#include "threads.h"

using namespace cscl::cpu;

enum class ClassLayout { contiguous, channels_last, strided };

struct ClassCase {
  int64_t batch, channels, height, width, classes;
  DataType type;
  ClassLayout layout;
  bool hard, broken;

  int64_t locations() const { return batch * height * width; }
  std::string text() const {
    char line[160];
    std::snprintf(line, sizeof line, "centroids [%ld, %ld, %ld, %ld] K %ld %s layout %d %s%s",
                  long(batch), long(channels), long(height), long(width), long(classes),
                  name_of(type), static_cast<int>(layout), hard ? "hard" : "soft",
                  broken ? " with NaN and bad labels" : "");
    return line;
  }
};

// A tensor [B, D, h, w] in exactly as much memory as its strides need.
struct ClassTensor {
  std::vector<unsigned char> memory;
  LogitsView view;

  ClassTensor(const ClassCase& c, int64_t depth, DataType type) {
    view = {nullptr, type, c.batch, depth, c.height, c.width, 0, 0, 0, 0, c.height, c.width, false};
    if (c.layout == ClassLayout::channels_last) {
      view.stride_class = 1;
      view.stride_column = depth;
      view.stride_row = c.width * depth;
      view.stride_batch = c.height * view.stride_row;
    } else {
      const int64_t gap = c.layout == ClassLayout::strided ? 3 : 0;
      view.stride_column = c.layout == ClassLayout::strided ? 2 : 1;
      view.stride_row = c.width * view.stride_column + gap;
      view.stride_class = c.height * view.stride_row + gap;
      view.stride_batch = depth * view.stride_class + gap;
    }
    const int64_t elements =
        c.locations() == 0 ? 0 : at(c.batch - 1, depth - 1, c.height - 1, c.width - 1) + 1;
    memory.resize(static_cast<size_t>(elements) * size_of(type));
    view.data = memory.data();
  }
  int64_t at(int64_t b, int64_t d, int64_t y, int64_t x) const {
    return b * view.stride_batch + d * view.stride_class + y * view.stride_row +
           x * view.stride_column;
  }
  size_t byte(const ClassCase& c, int64_t n, int64_t d) const {
    const int64_t plane = c.height * c.width;
    return static_cast<size_t>(at(n / plane, d, n % plane / c.width, n % c.width)) *
           size_of(view.type);
  }
  double get(const ClassCase& c, int64_t n, int64_t d) const {
    return from_bits(view.type, &memory[byte(c, n, d)]);
  }
  void set(const ClassCase& c, int64_t n, int64_t d, double value) {
    to_bits(view.type, value, &memory[byte(c, n, d)]);
  }
};

// Features and labels, and what follows from them in double.
struct ClassSide {
  ClassTensor features, soft;
  std::vector<int64_t> hard;
  std::vector<int64_t> row;
  std::vector<double> weight, mass, sums;
  bool in_range = true;

  ClassSide(const ClassCase& c, uint64_t seed)
      : features(c, c.channels, c.type), soft(c, c.classes, c.type) {
    Random random(seed);
    const int64_t locations = c.locations();
    mass.assign(static_cast<size_t>(c.classes), 0);
    sums.assign(static_cast<size_t>(c.classes * c.channels), 0);
    for (int64_t n = 0; n < locations; ++n) {
      const bool gone = random.uniform() < 0.3;
      int64_t k = std::min<int64_t>(int64_t(random.uniform() * double(c.classes)), c.classes - 1);
      if (random.uniform() < 0.5 && n > 0 && row.back() < c.classes) k = row.back();  // runs
      for (int64_t j = 0; j < c.classes; ++j) {
        soft.set(c, n, j, gone ? 0.0 : rounded(c.type, j == k ? 0.5 + random.uniform() / 2 : 0.25));
      }
      double w = gone ? 0 : c.hard ? 1 : soft.get(c, n, k);
      int64_t label = gone ? 255 : k;
      if (c.broken && n % 11 == 5) {  // a bad hard label has no class
        label = n % 2 == 0 ? -1 : n % 3 == 0 ? c.classes + 300 : int64_t{1} << 40;
        if (c.hard) {
          w = 0;
          in_range = false;
        }
      }
      if (c.hard && label == 255) w = 0;  // of 256 classes as well
      hard.push_back(label);
      row.push_back(w > 0 ? k : c.classes);
      weight.push_back(w);
      for (int64_t d = 0; d < c.channels; ++d) {
        double value = random.normal() + 1;
        if (c.broken && w == 0) value = n % 2 == 0 ? NAN : INFINITY;  // reaches nobody
        features.set(c, n, d, value);
        if (w > 0) sums[static_cast<size_t>(k * c.channels + d)] += w * features.get(c, n, d);
      }
      if (w > 0) mass[static_cast<size_t>(k)] += w;
    }
  }
  LabelledFeatures view(const ClassCase& c, Guarded& rows, Guarded& weights, bool* good) {
    LabelledFeatures result;
    result.features = features.view;
    result.labels = soft.view;
    result.hard = c.hard;
    if (c.hard) {
      const int64_t plane = c.height * c.width;
      result.labels.data = hard.data();
      result.labels.stride_batch = plane;
      result.labels.stride_class = 0;
      result.labels.stride_row = c.width;
      result.labels.stride_column = 1;
    }
    result.row = static_cast<int32_t*>(rows.data());
    result.weight = static_cast<float*>(weights.data());
    result.in_range = good;
    return result;
  }
};

struct ClassRoom {
  Guarded row, weight, wide, narrow;
  explicit ClassRoom(const ClassCase& c)
      : row(size_t(c.locations()) * 4),
        weight(size_t(c.locations()) * 4),
        wide(size_t(c.classes * c.channels) * 4),
        narrow(size_t(c.classes) * 4) {}
  bool operator==(const ClassRoom& o) const {
    return row == o.row && weight == o.weight && wide == o.wide && narrow == o.narrow;
  }
  bool intact() const {
    return row.guards_intact() && weight.guards_intact() && wide.guards_intact() &&
           narrow.guards_intact();
  }
};

inline float number(const Guarded& memory, int64_t i) {
  float value;
  std::memcpy(&value, memory.data() + static_cast<size_t>(i) * 4, 4);
  return value;
}

// Calls test(case) for odd sizes, one location, one channel, 1 to 256 classes around the sizes of
// vectors, every type and layout, no image.
template <typename Test>
long for_each_class_case(const Test& test) {
  struct Shape {
    int64_t batch, channels, height, width, classes;
  };
  const Shape shapes[] = {{1, 37, 13, 17, 19}, {2, 16, 5, 7, 2},    {1, 5, 1, 1, 1},
                          {2, 1, 9, 5, 7},     {1, 20, 11, 6, 256}, {3, 70, 3, 3, 35},
                          {1, 2, 70, 67, 3},   {0, 4, 3, 3, 4},     {1, 2100, 2, 3, 15}};
  long cases = 0;
  for (const Shape& s : shapes) {
    for (const DataType type : {DataType::float32, DataType::float16, DataType::bfloat16}) {
      for (const ClassLayout layout :
           {ClassLayout::contiguous, ClassLayout::channels_last, ClassLayout::strided}) {
        for (const bool hard : {false, true}) {
          for (const bool broken : {false, true}) {
            test(ClassCase{s.batch, s.channels, s.height, s.width, s.classes, type, layout, hard,
                           broken});
            ++cases;
          }
        }
      }
    }
  }
  return cases;
}
