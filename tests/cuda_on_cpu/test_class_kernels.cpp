// class_centroids, centroid_gradient and symmetric_soft_divergence of csrc/cuda, run on the CPU,
// against double precision; test_class_kernels.py builds and runs it.
//
//     test_class_kernels SEEDS         with so many orders of the threads
//     test_class_kernels SEEDS few     a fifth of the sizes, for sanitizers
//     test_class_kernels SEEDS all     the cases of the CPU's kernels as well: minutes
#include <cuda_on_cpu/seeds.h>

#include <cstdlib>
#include <memory>

#include "cuda/kernels.h"
using cscl::LogitsView;
#include "../cpp/class_cases.h"

namespace cuda = cscl::cuda;
using cuda_on_cpu::GuardedBuffer;

namespace {

uint64_t seeds = 3;
double worst_value = 0, worst_slope = 0;  // as parts of what is allowed

struct Buffer : GuardedBuffer {
  explicit Buffer(size_t bytes, size_t alignment = 4)
      : GuardedBuffer(std::max<size_t>(bytes, 1), Edge::end, alignment) {
    std::memset(data(), 0xFF, bytes);  // NaN
  }
};

// A device whose scratch is guarded and full of NaN.
struct Device {
  std::vector<std::unique_ptr<Buffer>> scratch;
  cuda::Context context() {
    return {nullptr, 0, [this](size_t bytes) {
              scratch.push_back(std::make_unique<Buffer>(bytes, 16));
              return scratch.back()->data();
            }};
  }
  bool intact() const {
    for (const auto& buffer : scratch) {
      if (!buffer->intact()) return false;
    }
    return true;
  }
};

// One side in guarded memory, and its results.
struct Room {
  Buffer features, labels, row, weight, wide, narrow;
  cuda::LabelledFeatures side;

  Room(const ClassCase& c, const ClassSide& from, size_t slack = 0)
      : features(from.features.memory.size() + slack, slack > 0 ? 4 : 16),
        labels(c.hard ? from.hard.size() * 8 : from.soft.memory.size(), 8),
        row(size_t(c.locations()) * 4),
        weight(size_t(c.locations()) * 4),
        wide(size_t(c.classes * c.channels) * 4),
        narrow(size_t(c.classes) * 4) {
    std::copy(from.features.memory.begin(), from.features.memory.end(),
              features.data<unsigned char>());
    side.features = from.features.view;
    side.features.data = features.data();
    side.labels = from.soft.view;
    side.labels.data = labels.data();
    side.hard = c.hard;
    if (c.hard) {
      std::copy(from.hard.begin(), from.hard.end(), labels.data<int64_t>());
      side.labels.stride_batch = c.height * c.width;
      side.labels.stride_class = 0;
      side.labels.stride_row = c.width;
      side.labels.stride_column = 1;
    } else {
      std::copy(from.soft.memory.begin(), from.soft.memory.end(), labels.data<unsigned char>());
    }
    side.row = row.data<int32_t>();
    side.weight = weight.data<float>();
  }
  bool intact() const {
    return features.intact() && labels.intact() && row.intact() && weight.intact() &&
           wide.intact() && narrow.intact();
  }
  // All results, as the bytes they are: NaNs compare as well.
  void append(std::vector<uint32_t>& to) const {
    for (const Buffer* part : {&row, &weight, &wide, &narrow}) {
      const uint32_t* begin = part->data<uint32_t>();
      to.insert(to.end(), begin, begin + part->size() / 4);
    }
  }
};

bool near(double found, double exact, double relative, double absolute, double& worst) {
  const double error = std::fabs(found - exact) / (relative * std::fabs(exact) + absolute);
  if (error > worst) worst = error;
  return error <= 1 || (std::isnan(found) && std::isnan(exact)) || found == exact;
}

// ---- class_centroids ----------------------------------------------------------------------------

void check_gradient(const ClassCase& c, const ClassSide& side, Room& room, bool by_mass,
                    bool channels_last, size_t slack) {
  std::vector<float> slopes(static_cast<size_t>(c.classes * c.channels));
  Random random(3);
  for (float& value : slopes) value = static_cast<float>(30 * random.normal());
  if (c.broken) slopes[0] = NAN;
  Buffer slope(slopes.size() * 4 + slack, slack > 0 ? 4 : 16), scale(4);
  std::copy(slopes.begin(), slopes.end(), slope.data<float>());
  *scale.data<float>() = 3.0f;
  const size_t bytes = static_cast<size_t>(c.locations() * c.channels) * size_of(c.type);
  std::unique_ptr<Buffer> last;
  cuda_on_cpu::assert_seed_independent(
      [&] {
        last = std::make_unique<Buffer>(bytes + slack, slack > 0 ? 4 : 16);
        Device device;
        const cuda::CentroidGradientCall call = {slope.data<float>(),
                                                 by_mass ? room.narrow.data<float>() : nullptr,
                                                 by_mass ? nullptr : scale.data<float>(),
                                                 room.row.data<int32_t>(),
                                                 room.weight.data<float>(),
                                                 c.batch,
                                                 c.classes,
                                                 c.channels,
                                                 c.height * c.width,
                                                 last->data(),
                                                 c.type,
                                                 channels_last};
        cuda::centroid_gradient(call, device.context());
        check(last->intact() && slope.intact() && room.intact(), c.text(), "gradient: outside");
        return std::vector<unsigned char>(last->data<unsigned char>(),
                                          last->data<unsigned char>() + bytes);
      },
      seeds);
  const int64_t plane = c.height * c.width;
  for (int64_t n = 0; n < c.locations(); ++n) {
    const int64_t k = side.row[static_cast<size_t>(n)];
    for (int64_t d = 0; d < c.channels; ++d) {
      double exact = 0;
      if (k < c.classes) {
        exact = side.weight[size_t(n)] * double(slopes[size_t(k * c.channels + d)]);
        exact = by_mass ? exact / side.mass[size_t(k)] : exact * 3;
      }
      const int64_t at =
          channels_last ? n * c.channels + d : (n / plane * c.channels + d) * plane + n % plane;
      const double found =
          from_bits(c.type, last->data<unsigned char>() + size_t(at) * size_of(c.type));
      const double slack = 1e-6 * std::fabs(exact);
      if (!(found >= rounded(c.type, exact - slack) && found <= rounded(c.type, exact + slack)) &&
          !(std::isnan(found) && std::isnan(exact))) {
        return fail(c.text(), "gradient of " + std::to_string(n) + ", " + std::to_string(d) +
                                  " is " + std::to_string(found) + " for " + std::to_string(exact));
      }
    }
  }
}

// `slack` bytes behind the tensors move their beginnings to where no pack of four fits.
void check_centroids(const ClassCase& c, size_t slack = 0) {
  const ClassSide side(c, 1);
  std::unique_ptr<Room> room;
  cuda_on_cpu::assert_seed_independent(
      [&] {
        room = std::make_unique<Room>(c, side, slack);
        Device device;
        cuda::class_centroids({room->side, room->wide.data<float>(), room->narrow.data<float>()},
                              device.context());
        check(room->intact() && device.intact(), c.text(), "centroids: wrote outside");
        std::vector<uint32_t> all;
        room->append(all);
        return all;
      },
      seeds);
  for (size_t n = 0; n < size_t(c.locations()); ++n) {
    check(room->row.data<int32_t>()[n] == side.row[n], c.text(), "a location has another class");
    check(room->weight.data<float>()[n] == side.weight[n], c.text(), "another weight");
  }
  for (size_t k = 0; k < size_t(c.classes); ++k) {
    const double mass = side.mass[k];
    check(near(room->narrow.data<float>()[k], mass, 1e-6, 0, worst_value), c.text(), "a mass");
    for (size_t d = 0; d < size_t(c.channels); ++d) {
      const size_t at = k * size_t(c.channels) + d;
      const double exact = mass > 0 ? side.sums[at] / mass : 0.0;
      check(near(room->wide.data<float>()[at], exact, 1e-5, 1e-6, worst_value), c.text(),
            "a centroid is off");
    }
  }
  for (const bool channels_last : {false, true}) {
    for (const bool by_mass : {false, true}) {
      check_gradient(c, side, *room, by_mass, channels_last, slack);
    }
  }
}

// Soft labels that are no probabilities, of which class_cases.h has none: no class.
void check_bad_soft_labels() {
  const ClassCase c = {2, 5, 3, 7, 4, DataType::float32, ClassLayout::contiguous, false, false};
  const double bad[] = {NAN, -0.25, 1.25, INFINITY, -INFINITY};
  ClassSide side(c, 9);
  for (int64_t n = 0; n < 5; ++n) side.soft.set(c, 3 * n, n % c.classes, bad[n]);
  Room room(c, side);
  Device device;
  cuda::class_centroids({room.side, room.wide.data<float>(), room.narrow.data<float>()},
                        device.context());
  for (int64_t n = 0; n < c.locations(); ++n) {
    const bool is_bad = n < 15 && n % 3 == 0;
    check(room.row.data<int32_t>()[n] == (is_bad ? c.classes : side.row[size_t(n)]), c.text(),
          "the class beside bad soft labels");
    if (is_bad) check(room.weight.data<float>()[n] == 0, c.text(), "a bad label's weight");
  }
}

// An infinite feature makes its channel's centroid infinite, and no other.
void check_infinities() {
  const ClassCase c = {1, 8, 40, 40, 2, DataType::float32, ClassLayout::channels_last, true, false};
  ClassSide side(c, 9);
  for (size_t n = 100; n < side.row.size(); ++n) {
    if (side.row[n] != 1) continue;
    side.features.set(c, int64_t(n), 3, INFINITY);
    break;
  }
  Room room(c, side);
  Device device;
  cuda::class_centroids({room.side, room.wide.data<float>(), room.narrow.data<float>()},
                        device.context());
  for (size_t i = 0; i < 16; ++i) {
    check(std::isfinite(room.wide.data<float>()[i]) == (i != 11), c.text(), "an infinity's place");
  }
  check(room.wide.data<float>()[11] > 0, c.text(), "an infinity is not kept");
}

// ---- symmetric_soft_divergence ------------------------------------------------------------------

constexpr double kEps = 1e-3;

struct Exact {
  double loss = 0;
  std::vector<double> slope[2];  // [K, C]
};

// Eq. 11 in double; with h = ∂D/∂s the slopes are s (h - Σ s h) by softmax, (h - Σ s h) / Σ q by
// l1.
Exact divergence(const ClassCase& c, const ClassSide& source, const ClassSide& target,
                 bool softmax) {
  const ClassSide* sides[2] = {&source, &target};
  const size_t channels = size_t(c.channels);
  Exact result;
  double present = 0;
  for (auto& slope : result.slope) slope.assign(size_t(c.classes) * channels, 0.0);
  for (size_t k = 0; k < size_t(c.classes); ++k) {
    present += source.mass[k] > 0 && target.mass[k] > 0;
  }
  for (size_t k = 0; k < size_t(c.classes); ++k) {
    if (!(source.mass[k] > 0 && target.mass[k] > 0)) continue;
    std::vector<double> x[2], p[2];
    double totals[2];
    for (int i = 0; i < 2; ++i) {
      double sum = 0;
      for (size_t d = 0; d < channels; ++d) {
        x[i].push_back(sides[i]->sums[k * channels + d] / sides[i]->mass[k]);
        p[i].push_back(softmax ? std::exp(x[i][d]) : std::max(x[i][d], 0.0) + kEps);
        sum += p[i][d];
      }
      for (double& value : p[i]) value /= sum;
      totals[i] = sum;
    }
    for (int i = 0; i < 2; ++i) {
      const std::vector<double>&s = p[i], &t = p[1 - i];
      std::vector<double> h;
      double mean = 0;
      for (size_t d = 0; d < channels; ++d) {
        h.push_back(0.5 * (std::log(s[d] / t[d]) + 1 - t[d] / s[d]));
        mean += s[d] * h[d];
        if (i == 0) result.loss += 0.5 * (s[d] - t[d]) * std::log(s[d] / t[d]) / present;
      }
      for (size_t d = 0; d < channels; ++d) {
        const double slope =
            softmax ? s[d] * (h[d] - mean) : (x[i][d] < 0 ? 0 : (h[d] - mean) / totals[i]);
        result.slope[i][k * channels + d] = slope / (sides[i]->mass[k] * present);
      }
    }
  }
  return result;
}

void check_divergence(const ClassCase& c, const ClassCase& target_case, bool softmax) {
  const ClassSide source(c, 4), target(target_case, 5);
  std::unique_ptr<Room> a, b;
  float found = 0;
  cuda_on_cpu::assert_seed_independent(
      [&] {
        a = std::make_unique<Room>(c, source);
        b = std::make_unique<Room>(target_case, target);
        Buffer loss(4);
        Device device;
        cuda::symmetric_soft_divergence({a->side, b->side, softmax, kEps, loss.data<float>(),
                                         a->wide.data<float>(), b->wide.data<float>()},
                                        device.context());
        check(a->intact() && b->intact() && loss.intact() && device.intact(), c.text(),
              "divergence: wrote outside");
        std::vector<uint32_t> all = {*loss.data<uint32_t>()};
        a->append(all);
        b->append(all);
        found = *loss.data<float>();
        return all;
      },
      seeds);
  const Exact exact = divergence(c, source, target, softmax);
  if (!near(found, exact.loss, 1e-5, 1e-6, worst_value)) {
    fail(c.text(),
         "the divergence is " + std::to_string(found) + " for " + std::to_string(exact.loss));
  }
  for (int i = 0; i < 2; ++i) {
    const float* slope = (i == 0 ? a : b)->wide.data<float>();
    double largest = 0;
    for (const double value : exact.slope[i]) largest = std::max(largest, std::fabs(value));
    for (size_t j = 0; j < exact.slope[i].size(); ++j) {
      if (!near(slope[j], exact.slope[i][j], 0, 1e-4 * largest, worst_slope)) {
        return fail(c.text(), "slope " + std::to_string(j) + " of side " + std::to_string(i) +
                                  " is " + std::to_string(slope[j]) + " for " +
                                  std::to_string(exact.slope[i][j]));
      }
    }
  }
}

// ---- all cases ----------------------------------------------------------------------------------

void check_all(const ClassCase& c) {
  check_centroids(c);
  if (c.classes == 256 && c.channels != 3 && c.channels != 100) return;  // 131072 threads a launch
  for (const bool softmax : {true, false}) check_divergence(c, c, softmax);
}

long check_sizes(bool few) {
  long cases = 0;
  for (const int64_t classes : {1, 2, 19, 33, 256}) {
    for (const int64_t channels : {1, 3, 32, 64, 100, 132, 257}) {
      for (const ClassLayout layout :
           {ClassLayout::contiguous, ClassLayout::channels_last, ClassLayout::strided}) {
        // Which type and which labels come with a size does not matter much; all pairs occur.
        const auto type = static_cast<DataType>((cases + cases / 3) % 3);
        const bool hard = cases % 2 == 0, broken = cases % 5 == 0;
        const ClassCase c = {2, channels, 7, 9, classes, type, layout, hard, broken};
        if (!few || cases % 5 == 3 || cases % 45 == 0) check_all(c);
        ++cases;
      }
    }
  }
  return cases;
}

// More locations than are added in plain floats, more parts than warps; and the features of the
// paper's network, at a sixth of their size.
long check_many_locations() {
  long cases = 0;
  const auto type = DataType::float32;
  for (const ClassLayout layout : {ClassLayout::contiguous, ClassLayout::channels_last}) {
    for (const ClassCase& c : {ClassCase{1, 2, 301, 203, 3, type, layout, false, false},
                               ClassCase{1, 100, 97, 203, 3, type, layout, false, false},
                               ClassCase{1, 2048, 27, 53, 19, type, layout, true, false}}) {
      check_centroids(c);
      check_divergence(c, c, true);
      ++cases;
    }
  }
  return cases;
}

// Sides that are not alike: in layout, type, labels and size.
long check_unlike_sides() {
  const ClassCase a = {1, 68, 9, 11, 5, DataType::float32, ClassLayout::channels_last, true, false};
  const ClassCase b = {2, 68, 5, 6, 5, DataType::float16, ClassLayout::contiguous, false, false};
  const ClassCase none = {0,    68,   5, 6, 5, DataType::float32, ClassLayout::channels_last,
                          true, false};
  for (const bool softmax : {true, false}) {
    check_divergence(a, b, softmax);
    check_divergence(b, a, softmax);
    check_divergence(a, none, softmax);
    check_divergence(none, b, softmax);
  }
  return 8;
}

long check_alignments() {
  long cases = 0;
  for (const DataType type : {DataType::float32, DataType::bfloat16}) {
    check_centroids({1, 128, 5, 9, 7, type, ClassLayout::channels_last, true, false}, 4);
    ++cases;
  }
  return cases;
}

}  // namespace

int main(int count, char** words) {
  if (count > 1) seeds = std::strtoull(words[1], nullptr, 10);
  const std::string how = count > 2 ? words[2] : "";
  long cases = check_sizes(how == "few");
  std::printf("  sizes: %ld cases\n", cases);
  std::fflush(stdout);
  cases += check_unlike_sides() + check_alignments() + check_many_locations();
  check_bad_soft_labels();
  check_infinities();
  if (how == "all") cases += for_each_class_case(check_all);
  std::printf(
      "  class kernels: %ld cases, %llu seeds bit for bit, errors up to %.2f (values) and "
      "%.3f (slopes) of what is allowed, %ld failures\n",
      cases, static_cast<unsigned long long>(seeds), worst_value, worst_slope, failures);
  return failures == 0 ? 0 : 1;
}
