// transfer_reward against Eq. 4-6 in double precision, one location after the other.
#include "check.h"
#include "threads.h"

using namespace cscl::cpu;

namespace {

enum class Layout { contiguous, channels_last, strided };

struct Case {
  int64_t batch, classes, height, width;
  DataType type;
  Layout gated, plain;

  std::string text() const {
    char line[160];
    std::snprintf(line, sizeof line, "transfer_reward [%ld, %ld, %ld, %ld] %s layouts %d and %d",
                  long(batch), long(classes), long(height), long(width), ::name_of(type),
                  int(gated), int(plain));
    return line;
  }
};

struct Side {
  std::vector<unsigned char> memory;  // exactly as large as the strides need
  LogitsView view;

  double at(int64_t b, int64_t k, int64_t y, int64_t x) const {
    return from_bits(view.type, memory.data() + offset(b, k, y, x) * size_of(view.type));
  }
  void set(int64_t b, int64_t k, int64_t y, int64_t x, double value) {
    to_bits(view.type, value, memory.data() + offset(b, k, y, x) * size_of(view.type));
  }

 private:
  size_t offset(int64_t b, int64_t k, int64_t y, int64_t x) const {
    return static_cast<size_t>(b * view.stride_batch + k * view.stride_class + y * view.stride_row +
                               x * view.stride_column);
  }
};

Side make_side(const Case& c, Layout layout) {
  Side side;
  LogitsView& v = side.view;
  v.type = c.type;
  v.batch = c.batch, v.classes = c.classes, v.height = c.height, v.width = c.width;
  v.out_height = c.height, v.out_width = c.width, v.align_corners = false;
  if (layout == Layout::channels_last) {
    v.stride_class = 1;
    v.stride_column = c.classes;
    v.stride_row = c.width * v.stride_column;
    v.stride_batch = c.height * v.stride_row;
  } else {
    const int64_t gap = layout == Layout::strided ? 3 : 0;
    v.stride_column = layout == Layout::strided ? 2 : 1;
    v.stride_row = c.width * v.stride_column + gap;
    v.stride_class = c.height * v.stride_row + gap;
    v.stride_batch = c.classes * v.stride_class + gap;
  }
  const int64_t elements =
      c.batch * c.height * c.width == 0
          ? 0
          : 1 + (c.batch - 1) * v.stride_batch + (c.classes - 1) * v.stride_class +
                (c.height - 1) * v.stride_row + (c.width - 1) * v.stride_column;
  side.memory.resize(static_cast<size_t>(elements) * size_of(c.type));
  return side;
}

// log p of class `label`, and the lowest argmax; NaN and -1 unless all logits are finite.
std::pair<double, int64_t> judge(const Side& side, int64_t b, int64_t y, int64_t x, int64_t label) {
  int64_t winner = 0;
  for (int64_t k = 0; k < side.view.classes; ++k) {
    if (!std::isfinite(side.at(b, k, y, x))) return {NAN, -1};
    if (side.at(b, k, y, x) > side.at(b, winner, y, x)) winner = k;
  }
  double sum = 0;
  const double largest = side.at(b, winner, y, x);
  for (int64_t k = 0; k < side.view.classes; ++k) sum += std::exp(side.at(b, k, y, x) - largest);
  return {side.at(b, label, y, x) - largest - std::log(sum), winner};
}

struct Tally {
  long cases = 0, locations = 0, rewards[3] = {};
};

void check_case(const Case& c, bool outside, Tally& tally) {
  if (!chosen()) return;
  Side gated = make_side(c, c.gated), plain = make_side(c, c.plain);
  const int64_t pixels = c.batch * c.height * c.width;
  std::vector<int64_t> labels(static_cast<size_t>(pixels));
  Random random(static_cast<uint64_t>(c.classes * 1009 + c.width));
  const auto each = [&](const auto& body) {
    int64_t i = 0;
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t y = 0; y < c.height; ++y) {
        for (int64_t x = 0; x < c.width; ++x) body(b, y, x, i++);
      }
    }
  };
  each([&](int64_t b, int64_t y, int64_t x, int64_t i) {
    // Different logits, equal ones, ones that differ in the last place, and broken ones.
    const double kind = random.uniform();
    for (int64_t k = 0; k < c.classes; ++k) {
      plain.set(b, k, y, x, 3 * random.normal());
      const double value = plain.at(b, k, y, x);
      const double other = kind < 0.4   ? 3 * random.normal()
                           : kind < 0.7 ? value
                                        : value * 1.0000002;
      gated.set(b, k, y, x, other);
    }
    labels[static_cast<size_t>(i)] =
        static_cast<int64_t>(random.uniform() * static_cast<double>(c.classes));
    if (kind > 0.9) labels[static_cast<size_t>(i)] = 255;
    if (kind > 0.85 && kind < 0.9) gated.set(b, 0, y, x, kind > 0.87 ? NAN : -INFINITY);
    if (kind > 0.8 && kind < 0.85) plain.set(b, 0, y, x, kind > 0.82 ? NAN : INFINITY);
    if (outside && i == pixels / 2) labels[static_cast<size_t>(i)] = int64_t{1} << 40;
    if (outside && i == 0) labels[static_cast<size_t>(i)] = -3;
  });
  gated.view.data = gated.memory.data();
  plain.view.data = plain.memory.data();

  const auto run = [&](int threads) {
    std::pair<Guarded, Guarded> result(Guarded(static_cast<size_t>(pixels) * 4),
                                       Guarded(static_cast<size_t>(pixels)));
    bool in_range = true;
    transfer_reward(
        {gated.view, plain.view, labels.data(), static_cast<float*>(result.first.data()),
         static_cast<bool*>(result.second.data()), &in_range},
        threads);
    check(in_range == !(outside && pixels > 0), c.text(), "is wrong about the labels' range");
    check(result.first.guards_intact() && result.second.guards_intact(), c.text(),
          "wrote outside its results");
    return result;
  };
  const auto one = run(1);
  each([&](int64_t b, int64_t y, int64_t x, int64_t i) {
    const int64_t label = labels[static_cast<size_t>(i)];
    const bool valid = label >= 0 && label < c.classes && label != 255;
    float wanted = 0;
    double gain = 0;
    if (valid) {
      const auto with = judge(gated, b, y, x, label), without = judge(plain, b, y, x, label);
      gain = with.first - without.first;
      if (with.second == label) wanted += 1;
      if (gain > 0) wanted += 1;
    }
    float got;
    std::memcpy(&got, one.first.data() + i * 4, 4);
    ++tally.locations;
    ++tally.rewards[static_cast<int>(wanted)];
    check(*(one.second.data() + i) == (valid ? 1 : 0), c.text(), "is wrong about validity");
    // Closer than the rounding of a double sum, the order of summation decides.
    if (gain != 0 && std::fabs(gain) < 1e-14) return;
    check(got == wanted, c.text(),
          "reward " + std::to_string(got) + " for " + std::to_string(wanted));
  });
  for (const int threads : {2, 7}) {
    const auto more = run(threads);
    check(more.first == one.first && more.second == one.second, c.text(),
          std::to_string(threads) + " threads give other bits than one");
  }
  ++tally.cases;
}

}  // namespace

void test_transfer_reward() {
  struct Shape {
    int64_t batch, classes, height, width;
  };
  const Shape shapes[] = {{1, 19, 13, 37}, {2, 2, 5, 17},   {1, 1, 3, 5},    {1, 256, 2, 19},
                          {3, 19, 1, 1},   {2, 13, 33, 40}, {1, 16, 31, 50}, {1, 20, 1, 64},
                          {1, 7, 31, 1},   {0, 19, 4, 4}};
  Tally tally;
  for (const Shape& s : shapes) {
    for (const DataType type : {DataType::float32, DataType::float16, DataType::bfloat16}) {
      for (const Layout gated : {Layout::contiguous, Layout::channels_last, Layout::strided}) {
        for (const Layout plain : {Layout::contiguous, Layout::channels_last}) {
          for (const bool outside : {false, true}) {
            check_case({s.batch, s.classes, s.height, s.width, type, gated, plain}, outside, tally);
          }
        }
      }
    }
  }
  check(test_share() > 1 ||
            (tally.rewards[0] > 1000 && tally.rewards[1] > 1000 && tally.rewards[2] > 100),
        "transfer_reward", "the inputs do not show every reward");
  std::printf(
      "  transfer_reward: %ld cases, %ld locations against double precision (rewards 0, 1, 2: "
      "%ld, %ld, %ld), 1 = 2 = 7 threads bit for bit\n",
      tally.cases, tally.locations, tally.rewards[0], tally.rewards[1], tally.rewards[2]);
}
