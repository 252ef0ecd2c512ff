// The kernels of Algorithm 1 against lists that are sorted, in double precision.
#include <algorithm>
#include <functional>
#include <limits>

#include "check.h"
#include "cpu/class_threshold_select.h"

using namespace cscl::cpu;

namespace {

constexpr int64_t kBins = 65536;

struct Case {
  int64_t batch, classes, height, width, out_height, out_width;
  DataType type;
  bool channels_last, broken;

  bool resized() const { return out_height != height || out_width != width; }
  int64_t pixels() const { return batch * out_height * out_width; }
  std::string text() const {
    char line[160];
    std::snprintf(line, sizeof line, "class thresholds [%ld, %ld, %ld, %ld] -> %ldx%ld %s%s%s",
                  long(batch), long(classes), long(height), long(width), long(out_height),
                  long(out_width), ::name_of(type), channels_last ? " channels-last" : "",
                  broken ? " with NaN and infinity" : "");
    return line;
  }
};

struct Input {
  std::vector<unsigned char> memory;
  LogitsView view;
};

Input make_input(const Case& c) {
  Input input;
  LogitsView& v = input.view;
  v = {nullptr, c.type, c.batch, c.classes,    c.height,    c.width, 0,
       0,       0,      0,       c.out_height, c.out_width, false};
  v.stride_class = c.channels_last ? 1 : c.height * c.width;
  v.stride_column = c.channels_last ? c.classes : 1;
  v.stride_row = c.width * v.stride_column;
  v.stride_batch = c.classes * c.height * c.width;
  const size_t elements = static_cast<size_t>(c.batch * v.stride_batch), size = size_of(c.type);
  input.memory.resize(elements * size);
  Random random(static_cast<uint64_t>(c.classes * 7919 + c.width));
  for (size_t i = 0; i < elements; ++i) {
    double value = 3 * random.normal();
    if (c.broken && random.uniform() > 0.995) value = random.uniform() > 0.5 ? NAN : INFINITY;
    to_bits(c.type, value, &input.memory[i * size]);
  }
  v.data = input.memory.data();
  return input;
}

// Confidence and class of a pixel at the logits' own size; class -1: does not count.
struct Pixel {
  double confidence;
  int64_t winner;
};

Pixel pixel_at(const Case& c, const LogitsView& v, int64_t pixel) {
  const int64_t plane = c.height * c.width, x = pixel % plane % c.width;
  const int64_t y = pixel % plane / c.width;
  std::vector<double> z;
  bool finite = true;
  for (int64_t k = 0; k < c.classes; ++k) {
    const int64_t at = pixel / plane * v.stride_batch + k * v.stride_class + y * v.stride_row +
                       x * v.stride_column;
    z.push_back(from_bits(c.type, static_cast<const unsigned char*>(v.data) +
                                      static_cast<size_t>(at) * size_of(c.type)));
    finite = finite && std::isfinite(z.back());
  }
  if (!finite) return {0, -1};
  const auto best = std::max_element(z.begin(), z.end());
  double sum = 0;
  for (const double value : z) sum += std::exp(value - *best);
  return {1 / sum, best - z.begin()};
}

struct Result {
  Guarded keys, histogram, exact;
};

Result run(const Case& c, const Input& input, double portion, int threads) {
  const size_t cells = static_cast<size_t>(c.classes * kBins) * sizeof(int64_t);
  Result result{Guarded(static_cast<size_t>(c.pixels()) * sizeof(int32_t)), Guarded(cells),
                Guarded(static_cast<size_t>(c.classes) * sizeof(float))};
  std::memset(result.histogram.data(), 0, cells);
  class_threshold_keys({input.view, static_cast<int32_t*>(result.keys.data())}, threads);
  class_threshold_update({input.view, static_cast<int64_t*>(result.histogram.data())}, threads);
  class_thresholds({input.view, portion, static_cast<float*>(result.exact.data())}, threads);
  return result;
}

void check_case(const Case& c) {
  if (!chosen()) return;
  const Input input = make_input(c);
  const double portion = 0.35;
  const Result one = run(c, input, portion, 1);
  const std::string where = c.text();
  check(one.keys.guards_intact() && one.histogram.guards_intact() && one.exact.guards_intact(),
        where, "wrote outside");
  for (const int threads : {2, 7}) {
    const Result more = run(c, input, portion, threads);
    check(more.keys == one.keys && more.histogram == one.histogram && more.exact == one.exact,
          where, std::to_string(threads) + " threads give other bits than one");
  }

  const Result& r = one;
  const int32_t* keys = reinterpret_cast<const int32_t*>(r.keys.data());
  const int64_t* histogram = reinterpret_cast<const int64_t*>(r.histogram.data());
  const float* exact = reinterpret_cast<const float*>(r.exact.data());
  std::vector<int64_t> counted(static_cast<size_t>(c.classes * kBins), 0);
  std::vector<std::vector<double>> lists(static_cast<size_t>(c.classes));
  for (int64_t i = 0; i < c.pixels(); ++i) {
    check(keys[i] >= 0 && keys[i] <= c.classes * kBins, where, "a key is out of range");
    const int64_t k = keys[i] / kBins;
    if (k < c.classes) {
      ++counted[static_cast<size_t>(keys[i])];
      lists[static_cast<size_t>(k)].push_back((double(keys[i] % kBins) + 0.5) / double(kBins));
    }
    if (c.resized()) continue;
    const Pixel pixel = pixel_at(c, input.view, i);
    check(pixel.winner == (k < c.classes ? k : -1), where, "another class");
    if (pixel.winner < 0) continue;
    const double centre = lists[static_cast<size_t>(k)].back();
    check(std::fabs(centre - pixel.confidence) <= 0.5 / double(kBins) + 1e-6, where,
          "another confidence");
  }
  check(std::equal(counted.begin(), counted.end(), histogram), where,
        "the histogram does not count the keys");

  std::vector<float> of_histogram(static_cast<size_t>(2 * c.classes)), of_keys = of_histogram;
  const double portions[] = {portion, 1.0};
  thresholds_of_histogram(
      {histogram, nullptr, static_cast<int>(c.classes), portions, 2, of_histogram.data()}, 2);
  for (int p = 0; p < 2; ++p) {
    select_keys(keys, c.pixels(), static_cast<int>(c.classes), portions[p],
                of_keys.data() + p * c.classes);
  }
  check(of_keys == of_histogram, where, "keys and histogram answer differently");
  std::vector<float> doubled(static_cast<size_t>(c.classes));
  thresholds_of_histogram(
      {histogram, histogram, static_cast<int>(c.classes), portions + 1, 1, doubled.data()}, 2);
  check(std::equal(doubled.begin(), doubled.end(), of_histogram.begin() + c.classes), where,
        "a histogram added to itself has another smallest confidence");
  for (size_t k = 0; k < lists.size(); ++k) {
    std::vector<double>& list = lists[k];
    std::sort(list.begin(), list.end(), std::greater<double>());
    const size_t n = list.size();
    const double want =
        n == 0 ? 1.0 : list[std::min(static_cast<size_t>(portion * double(n)), n - 1)];
    check(of_histogram[k] == static_cast<float>(want), where, "not the order statistic");
    check(std::fabs(double(exact[k]) - want) <= 0.5 / double(kBins), where,
          "the exact order statistic is more than half a bin away");
  }
}

}  // namespace

void test_class_thresholds() {
  long cases = 0;
  struct Shape {
    int64_t batch, classes, height, width;
  };
  const Shape shapes[] = {{1, 19, 13, 37},  {2, 2, 5, 17},  {1, 1, 3, 5},   {1, 256, 2, 19},
                          {3, 19, 1, 1},    {1, 20, 1, 64}, {1, 33, 31, 1}, {0, 19, 4, 4},
                          {2, 19, 97, 131}, {1, 16, 99, 93}};
  for (const Shape& s : shapes) {
    for (const bool resized : {false, true}) {
      for (const DataType type : {DataType::float32, DataType::float16, DataType::bfloat16}) {
        for (const bool channels_last : {false, true}) {
          for (const bool broken : {false, true}) {
            check_case({s.batch, s.classes, s.height, s.width,
                        resized ? 2 * s.height + 1 : s.height, resized ? 3 * s.width - 1 : s.width,
                        type, channels_last, broken});
            ++cases;
          }
        }
      }
    }
  }
  // More pixels than are held before they are counted, and one row longer than a task.
  check_case({1, 2, 1030, 1031, 1030, 1031, DataType::float32, false, true});
  check_case({1, 3, 2, 60, 2, 20000, DataType::float32, false, false});
  std::printf("  class_thresholds: %ld cases, 1, 2 and 7 threads bitwise equal\n", cases + 2);
}
