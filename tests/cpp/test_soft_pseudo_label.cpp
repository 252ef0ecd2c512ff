// soft_pseudo_labels against Eq. 8-10 in double precision, typed straight from the paper.
#include <algorithm>
#include <limits>

#include "check.h"
#include "threads.h"

using namespace cscl::cpu;

namespace {

enum class Layout { contiguous, channels_last, strided };

const char* name_of(Layout layout) {
  return layout == Layout::contiguous      ? "contiguous"
         : layout == Layout::channels_last ? "channels-last"
                                           : "strided";
}

struct Case {
  int64_t batch, classes, height, width;
  int64_t out_height, out_width;
  bool align_corners;
  double gamma;
  DataType type;
  Layout layout;
  bool broken;  // with NaN and infinite logits

  bool resized() const { return out_height != height || out_width != width; }

  std::string text() const {
    char line[200];
    std::snprintf(line, sizeof line,
                  "soft_pseudo_labels [%ld, %ld, %ld, %ld] -> %ldx%ld%s gamma %g %s %s%s",
                  long(batch), long(classes), long(height), long(width), long(out_height),
                  long(out_width), align_corners ? " align_corners" : "", gamma, ::name_of(type),
                  name_of(layout), broken ? " with NaN and infinity" : "");
    return line;
  }
};

struct Input {
  std::vector<unsigned char> memory;  // exactly as large as the strides need
  LogitsView view;
  std::vector<float> thresholds;
};

Input make_input(const Case& c) {
  Input input;
  LogitsView& v = input.view;
  v.type = c.type;
  v.batch = c.batch, v.classes = c.classes, v.height = c.height, v.width = c.width;
  v.out_height = c.out_height, v.out_width = c.out_width, v.align_corners = c.align_corners;
  if (c.layout == Layout::channels_last) {
    v.stride_class = 1;
    v.stride_column = c.classes;
    v.stride_row = c.width * v.stride_column;
    v.stride_batch = c.height * v.stride_row;
  } else {
    const int64_t gap = c.layout == Layout::strided ? 3 : 0;
    v.stride_column = c.layout == Layout::strided ? 2 : 1;
    v.stride_row = c.width * v.stride_column + gap;
    v.stride_class = c.height * v.stride_row + gap;
    v.stride_batch = c.classes * v.stride_class + gap;
  }
  const int64_t elements =
      c.batch * c.classes * c.height * c.width == 0
          ? 0
          : 1 + (c.batch - 1) * v.stride_batch + (c.classes - 1) * v.stride_class +
                (c.height - 1) * v.stride_row + (c.width - 1) * v.stride_column;
  const size_t size = size_of(c.type);
  input.memory.resize(static_cast<size_t>(elements) * size);
  Random random(static_cast<uint64_t>(c.classes * 1000003 + c.height * 1009 + c.width));
  for (int64_t i = 0; i < elements; ++i) {
    to_bits(c.type, 3 * random.normal(), &input.memory[static_cast<size_t>(i) * size]);
  }
  // A third of the pixels is certain of one class, so that many are kept.
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t y = 0; y < c.height; ++y) {
      for (int64_t x = 0; x < c.width; ++x) {
        const double dice = random.uniform();
        const int64_t k = static_cast<int64_t>(random.uniform() * static_cast<double>(c.classes));
        const int64_t at =
            b * v.stride_batch + k * v.stride_class + y * v.stride_row + x * v.stride_column;
        double value = 3 * random.normal();
        if (dice < 0.33) value = 12 + 3 * random.normal();
        if (c.broken && dice > 0.97) value = dice > 0.99 ? NAN : dice > 0.98 ? INFINITY : -INFINITY;
        to_bits(c.type, value, &input.memory[static_cast<size_t>(at) * size]);
      }
    }
  }
  for (int64_t k = 0; k < c.classes; ++k) {
    input.thresholds.push_back(static_cast<float>(0.05 + 0.95 * random.uniform()));
  }
  if (c.classes > 2) input.thresholds[1] = 1.0f;
  v.data = input.memory.data();
  return input;
}

double logit(const LogitsView& v, int64_t b, int64_t k, int64_t y, int64_t x) {
  const int64_t at =
      b * v.stride_batch + k * v.stride_class + y * v.stride_row + x * v.stride_column;
  return from_bits(v.type, static_cast<const unsigned char*>(v.data) +
                               static_cast<size_t>(at) * size_of(v.type));
}

// Two neighbours and the second one's weight, as PyTorch's bilinear resizing places them.
struct Neighbours {
  int64_t first, second;
  double weight;
};

Neighbours neighbours(int64_t place, int64_t length, int64_t out_length, bool align_corners) {
  double at =
      align_corners
          ? (out_length > 1 ? double(place) * double(length - 1) / double(out_length - 1) : 0)
          : (double(place) + 0.5) * double(length) / double(out_length) - 0.5;
  at = std::max(at, 0.0);
  const int64_t first = std::min(static_cast<int64_t>(at), length - 1);
  return {first, std::min(first + 1, length - 1), at - double(first)};
}

struct Result {
  Guarded soft, hard;
};

Result run(const Case& c, const Input& input, bool soft_channels_last, int threads) {
  const size_t pixels = static_cast<size_t>(c.batch * c.out_height * c.out_width);
  Result result{Guarded(pixels * static_cast<size_t>(c.classes) * size_of(c.type)),
                Guarded(pixels * sizeof(int64_t))};
  SoftPseudoLabelCall call;
  call.logits = input.view;
  call.thresholds = input.thresholds.data();
  call.gamma = c.gamma;
  call.soft = result.soft.data();
  call.soft_channels_last = soft_channels_last;
  call.hard = static_cast<int64_t*>(result.hard.data());
  soft_pseudo_labels(call, threads);
  return result;
}

struct Tally {
  long cases = 0, pixels = 0, kept = 0, rejected = 0, undecided = 0;
};

// One pixel against the closed form: a = (log p - log delta) / gamma, y = softmax(a), kept if and
// only if logsumexp(a) > 0.
void check_pixel(const Case& c, const Input& input, const Result& result, bool soft_channels_last,
                 int64_t b, int64_t y, int64_t x, Tally& tally) {
  const LogitsView& v = input.view;
  std::vector<double> a(static_cast<size_t>(c.classes));
  bool finite = true;
  for (int64_t k = 0; k < c.classes; ++k) {
    double z;
    if (c.resized()) {
      const Neighbours row = neighbours(y, c.height, c.out_height, c.align_corners);
      const Neighbours column = neighbours(x, c.width, c.out_width, c.align_corners);
      const auto along_row = [&](int64_t r) {
        return (1 - column.weight) * logit(v, b, k, r, column.first) +
               column.weight * logit(v, b, k, r, column.second);
      };
      z = (1 - row.weight) * along_row(row.first) + row.weight * along_row(row.second);
    } else {
      z = logit(v, b, k, y, x);
    }
    finite = finite && std::isfinite(z);
    a[static_cast<size_t>(k)] = z;
  }
  const auto log_sum_exp = [](const std::vector<double>& values) {
    const double largest = *std::max_element(values.begin(), values.end());
    double sum = 0;
    for (const double value : values) sum += std::exp(value - largest);
    return largest + std::log(sum);
  };
  double cost = 0;  // the selection cost, up to its sign and gamma
  int64_t best = 0;
  double margin = INFINITY;
  if (finite) {
    const double normaliser = log_sum_exp(a);
    for (size_t k = 0; k < a.size(); ++k) {
      a[k] = (a[k] - normaliser - std::log(double(input.thresholds[k]))) / c.gamma;
    }
    cost = log_sum_exp(a);
    best = std::max_element(a.begin(), a.end()) - a.begin();
    for (size_t k = 0; k < a.size(); ++k) {
      if (static_cast<int64_t>(k) != best)
        margin = std::min(margin, a[static_cast<size_t>(best)] - a[k]);
    }
  }
  const bool kept = finite && cost > 0;
  // The contract leaves open what lies within 1e-5 of a decision; an error there is divided by
  // gamma like every other.
  const double open = 1e-5 / c.gamma;
  const bool decided = !finite || std::fabs(cost) > open;
  const auto where = [&] {
    return c.text() + " at " + std::to_string(b) + ", " + std::to_string(y) + ", " +
           std::to_string(x);
  };

  const int64_t pixel = (b * c.out_height + y) * c.out_width + x;
  int64_t hard;
  std::memcpy(&hard, result.hard.data() + static_cast<size_t>(pixel) * sizeof hard, sizeof hard);
  const bool says_kept = hard != 255;
  ++tally.pixels;
  if (decided) {
    ++(kept ? tally.kept : tally.rejected);
    if (says_kept != kept) return fail(where(), kept ? "is rejected" : "is kept");
  } else {
    ++tally.undecided;
  }
  if (says_kept && margin > open && hard != best) {
    return fail(where(), "hard is " + std::to_string(hard) + " for " + std::to_string(best));
  }
  for (int64_t k = 0; k < c.classes; ++k) {
    const int64_t at = soft_channels_last
                           ? pixel * c.classes + k
                           : ((b * c.classes + k) * c.out_height + y) * c.out_width + x;
    const double soft =
        from_bits(c.type, result.soft.data() + static_cast<size_t>(at) * size_of(c.type));
    const double exact = says_kept ? std::exp(a[static_cast<size_t>(k)] - cost) : 0;
    const double tolerance = says_kept ? 1e-5 / c.gamma * exact + 1e-6 : 0;
    // Before the rounding of the result's type: rounding keeps the order, so it may round the ends.
    if (!(soft >= rounded(c.type, std::max(exact - tolerance, 0.0)) &&
          soft <= rounded(c.type, exact + tolerance))) {
      char line[120];
      std::snprintf(line, sizeof line, "soft[%ld] is %.9g for %.9g", long(k), soft, exact);
      return fail(where(), line);
    }
  }
}

// A kernel may compute with tiny numbers flushed to zero, but has to leave the mode as it was.
bool keeps_tiny_numbers() {
  volatile double smallest = std::numeric_limits<double>::min();
  return smallest / 2 > 0;
}

void check_case(const Case& c, Tally& tally) {
  if (!chosen()) return;
  const Input input = make_input(c);
  for (const bool soft_channels_last : {false, true}) {
    const Result one = run(c, input, soft_channels_last, 1);
    check(one.soft.guards_intact(), c.text(), "wrote outside soft");
    check(one.hard.guards_intact(), c.text(), "wrote outside hard");
    check(keeps_tiny_numbers(), c.text(), "left the processor flushing tiny numbers to zero");
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t y = 0; y < c.out_height; ++y) {
        for (int64_t x = 0; x < c.out_width; ++x) {
          check_pixel(c, input, one, soft_channels_last, b, y, x, tally);
        }
      }
    }
    for (const int threads : {2, 7}) {
      const Result more = run(c, input, soft_channels_last, threads);
      check(more.soft == one.soft && more.hard == one.hard, c.text(),
            std::to_string(threads) + " threads give other bits than one");
    }
    ++tally.cases;
  }
}

}  // namespace

void test_soft_pseudo_labels() {
  struct Shape {
    int64_t batch, classes, height, width;
  };
  // Odd sizes, one pixel, one to 256 classes, widths around the vectors' 4, 8 and 16, no image.
  const Shape shapes[] = {{1, 19, 13, 37}, {2, 2, 5, 17},  {1, 1, 3, 5},  {1, 256, 2, 19},
                          {3, 19, 1, 1},   {1, 20, 1, 64}, {1, 7, 31, 1}, {0, 19, 4, 4}};
  Tally tally;
  const long before = threads_started();
  for (const Shape& s : shapes) {
    struct Size {
      int64_t height, width;
      bool align_corners;
    };
    const Size sizes[] = {{s.height, s.width, false},
                          {2 * s.height + 1, 3 * s.width - 1, false},
                          {2 * s.height + 1, 3 * s.width - 1, true},
                          {std::max<int64_t>(s.height / 2, 1), s.width + 2, false}};
    for (const Size& size : sizes) {
      for (const DataType type : {DataType::float32, DataType::float16, DataType::bfloat16}) {
        for (const Layout layout : {Layout::contiguous, Layout::channels_last, Layout::strided}) {
          for (const bool broken : {false, true}) {
            const double gamma = layout == Layout::contiguous && !broken ? 1.0 : 0.25;
            check_case({s.batch, s.classes, s.height, s.width, size.height, size.width,
                        size.align_corners, gamma, type, layout, broken},
                       tally);
          }
        }
      }
    }
  }
  // Results that outgrow the caches, which kernels may write past them.
  for (const Layout layout : {Layout::contiguous, Layout::channels_last}) {
    check_case({1, 19, 256, 448, 256, 448, false, 0.25, DataType::float32, layout, true}, tally);
  }
  check_case({1, 19, 33, 57, 256, 448, false, 0.25, DataType::float32, Layout::contiguous, true},
             tally);
  check_case({1, 38, 256, 448, 256, 448, false, 0.25, DataType::bfloat16, Layout::contiguous, true},
             tally);
  check(threads_started() > before, "soft_pseudo_labels", "never ran on more than one thread");
  check(test_share() > 1 || (tally.kept > 1000 && tally.rejected > 1000), "soft_pseudo_labels",
        "the inputs do not show both kept and rejected pixels");
  std::printf(
      "  soft_pseudo_labels: %ld cases, %ld pixels against double precision (%ld kept, %ld "
      "rejected, %ld too close to call), 1 = 2 = 7 threads bit for bit\n",
      tally.cases, tally.pixels, tally.kept, tally.rejected, tally.undecided);
}
