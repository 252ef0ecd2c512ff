// class_centroids, symmetric_soft_divergence and their gradients against double precision.
#include <algorithm>

#include "check.h"
#include "threads.h"

using namespace cscl::cpu;

namespace {

enum class Layout { contiguous, channels_last, strided };

struct Case {
  int64_t batch, channels, height, width, classes;
  DataType type;
  Layout layout;
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
struct Tensor {
  std::vector<unsigned char> memory;
  LogitsView view;

  Tensor(const Case& c, int64_t depth, DataType type) {
    view = {nullptr, type, c.batch, depth, c.height, c.width, 0, 0, 0, 0, c.height, c.width, false};
    if (c.layout == Layout::channels_last) {
      view.stride_class = 1;
      view.stride_column = depth;
      view.stride_row = c.width * depth;
      view.stride_batch = c.height * view.stride_row;
    } else {
      const int64_t gap = c.layout == Layout::strided ? 3 : 0;
      view.stride_column = c.layout == Layout::strided ? 2 : 1;
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
  size_t byte(const Case& c, int64_t n, int64_t d) const {
    const int64_t plane = c.height * c.width;
    return static_cast<size_t>(at(n / plane, d, n % plane / c.width, n % c.width)) *
           size_of(view.type);
  }
  double get(const Case& c, int64_t n, int64_t d) const {
    return from_bits(view.type, &memory[byte(c, n, d)]);
  }
  void set(const Case& c, int64_t n, int64_t d, double value) {
    to_bits(view.type, value, &memory[byte(c, n, d)]);
  }
};

// Features and labels, and what follows from them in double.
struct Side {
  Tensor features, soft;
  std::vector<int64_t> hard;
  std::vector<int64_t> row;
  std::vector<double> weight, mass, sums;
  bool in_range = true;

  Side(const Case& c, uint64_t seed) : features(c, c.channels, c.type), soft(c, c.classes, c.type) {
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
  LabelledFeatures view(const Case& c, Guarded& rows, Guarded& weights, bool* good) {
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

struct Room {
  Guarded row, weight, wide, narrow;
  explicit Room(const Case& c)
      : row(size_t(c.locations()) * 4),
        weight(size_t(c.locations()) * 4),
        wide(size_t(c.classes * c.channels) * 4),
        narrow(size_t(c.classes) * 4) {}
  bool operator==(const Room& o) const {
    return row == o.row && weight == o.weight && wide == o.wide && narrow == o.narrow;
  }
  bool intact() const {
    return row.guards_intact() && weight.guards_intact() && wide.guards_intact() &&
           narrow.guards_intact();
  }
};

float number(const Guarded& memory, int64_t i) {
  float value;
  std::memcpy(&value, memory.data() + static_cast<size_t>(i) * 4, 4);
  return value;
}

Room centroids(const Case& c, Side& side, int threads, bool* good) {
  Room room(c);
  ClassCentroidsCall call{side.view(c, room.row, room.weight, good),
                          static_cast<float*>(room.wide.data()),
                          static_cast<float*>(room.narrow.data())};
  class_centroids(call, threads);
  return room;
}

Guarded gradient(const Case& c, Room& room, const float* slope, bool by_mass, const float* scale,
                 bool channels_last, int threads) {
  Guarded result(static_cast<size_t>(c.locations() * c.channels) * size_of(c.type));
  CentroidGradientCall call;
  call.slope = slope;
  call.mass = by_mass ? static_cast<const float*>(room.narrow.data()) : nullptr;
  call.scale = scale;
  call.row = static_cast<const int32_t*>(room.row.data());
  call.weight = static_cast<const float*>(room.weight.data());
  call.batch = c.batch;
  call.classes = c.classes;
  call.channels = c.channels;
  call.plane = c.height * c.width;
  call.gradient = result.data();
  call.type = c.type;
  call.channels_last = channels_last;
  centroid_gradient(call, threads);
  return result;
}

void check_gradient(const Case& c, const Side& side, const Guarded& found, const float* slope,
                    bool by_mass, double scale, bool channels_last) {
  const int64_t plane = c.height * c.width;
  for (int64_t n = 0; n < c.locations(); ++n) {
    const int64_t k = side.row[static_cast<size_t>(n)];
    for (int64_t d = 0; d < c.channels; ++d) {
      double exact = 0;
      if (k < c.classes) {
        exact = side.weight[static_cast<size_t>(n)] * scale * double(slope[k * c.channels + d]);
        if (by_mass) exact /= side.mass[static_cast<size_t>(k)];
      }
      const int64_t at =
          channels_last ? n * c.channels + d : (n / plane * c.channels + d) * plane + n % plane;
      const double value =
          from_bits(c.type, found.data() + static_cast<size_t>(at) * size_of(c.type));
      const double tolerance = 1e-6 * std::fabs(exact);
      if (!(value >= rounded(c.type, exact - tolerance) &&
            value <= rounded(c.type, exact + tolerance)) &&
          !(std::isnan(value) && std::isnan(exact))) {
        char line[120];
        std::snprintf(line, sizeof line, "gradient of %ld, %ld is %.9g for %.9g", long(n), long(d),
                      value, exact);
        return fail(c.text(), line);
      }
    }
  }
}

void check_centroids(const Case& c) {
  Side side(c, 1);
  bool good = false;
  Room one = centroids(c, side, 1, &good);
  check(one.intact(), c.text(), "wrote outside its results");
  check(good == side.in_range, c.text(), "says of the labels what is not so");
  for (int64_t n = 0; n < c.locations(); ++n) {
    int32_t row;
    std::memcpy(&row, std::as_const(one).row.data() + static_cast<size_t>(n) * 4, 4);
    check(row == side.row[static_cast<size_t>(n)], c.text(), "a location has another class");
  }
  for (int64_t k = 0; k < c.classes; ++k) {
    const double mass = side.mass[static_cast<size_t>(k)];
    check(std::fabs(number(one.narrow, k) - mass) <= 1e-6 * mass, c.text(), "a mass is off");
    for (int64_t d = 0; d < c.channels; ++d) {
      const double exact =
          mass > 0 ? side.sums[static_cast<size_t>(k * c.channels + d)] / mass : 0.0;
      const double found = number(one.wide, k * c.channels + d);
      check(std::fabs(found - exact) <= 1e-5 * std::fabs(exact) + 1e-6, c.text(),
            "a centroid is off");
    }
  }
  std::vector<float> slope(static_cast<size_t>(c.classes * c.channels));
  Random random(3);
  for (float& value : slope) value = static_cast<float>(30 * random.normal());
  if (c.broken) slope[0] = NAN;
  const float scale = 3.0f;
  for (const bool channels_last : {false, true}) {
    for (const bool by_mass : {false, true}) {
      const float* scaled = by_mass ? nullptr : &scale;
      const Guarded first = gradient(c, one, slope.data(), by_mass, scaled, channels_last, 1);
      check(first.guards_intact(), c.text(), "wrote outside the gradient");
      check_gradient(c, side, first, slope.data(), by_mass, by_mass ? 1 : 3, channels_last);
      for (const int threads : {2, 7}) {
        check(gradient(c, one, slope.data(), by_mass, scaled, channels_last, threads) == first,
              c.text(), "more threads give another gradient");
      }
    }
  }
  for (const int threads : {2, 7}) {
    check(centroids(c, side, threads, &good) == one, c.text(), "more threads give other bits");
  }
}

// Eq. 11 in double; slopes by differences are checked from Python.
double divergence(const Case& c, const Side& s, const Side& t, bool softmax, double eps) {
  double total = 0, present = 0;
  for (int64_t k = 0; k < c.classes; ++k) {
    const Side* sides[2] = {&s, &t};
    std::vector<double> p[2];
    if (!(s.mass[size_t(k)] > 0 && t.mass[size_t(k)] > 0)) continue;
    for (int i = 0; i < 2; ++i) {
      double sum = 0;
      for (int64_t d = 0; d < c.channels; ++d) {
        const double x = sides[i]->sums[size_t(k * c.channels + d)] / sides[i]->mass[size_t(k)];
        p[i].push_back(softmax ? std::exp(x) : std::max(x, 0.0) + eps);
        sum += p[i].back();
      }
      for (double& value : p[i]) value /= sum;
    }
    for (size_t d = 0; d < p[0].size(); ++d) {
      total += (p[0][d] - p[1][d]) * (std::log(p[0][d]) - std::log(p[1][d])) / 2;
    }
    ++present;
  }
  return present > 0 ? total / present : 0;
}

void check_divergence(const Case& c, bool softmax) {
  Side s(c, 4), t(c, 5);
  const auto run = [&](int threads) {
    Room a(c), b(c);
    Guarded loss(4);
    bool good[2];
    SymmetricSoftDivergenceCall call;
    call.source = s.view(c, a.row, a.weight, &good[0]);
    call.target = t.view(c, b.row, b.weight, &good[1]);
    call.softmax = softmax;
    call.eps = 1e-3;
    call.loss = static_cast<float*>(loss.data());
    call.source_slope = static_cast<float*>(a.wide.data());
    call.target_slope = static_cast<float*>(b.wide.data());
    symmetric_soft_divergence(call, threads);
    check(good[0] == s.in_range && good[1] == t.in_range, c.text(), "misjudges the labels");
    check(a.intact() && b.intact() && loss.guards_intact(), c.text(), "divergence wrote outside");
    return std::make_pair(std::make_pair(std::move(a), std::move(b)), std::move(loss));
  };
  const auto one = run(1);
  const double exact = divergence(c, s, t, softmax, 1e-3);
  check(std::fabs(number(one.second, 0) - exact) <= 1e-5 * exact + 1e-6, c.text(),
        "the divergence is off");
  for (const int threads : {2, 7}) {
    check(run(threads) == one, c.text(), "more threads give another divergence");
  }
}

}  // namespace

void test_class_centroids() {
  struct Shape {
    int64_t batch, channels, height, width, classes;
  };
  // Odd sizes, one location, one channel, 1 to 256 classes around the sizes of vectors, no image.
  const Shape shapes[] = {{1, 37, 13, 17, 19}, {2, 16, 5, 7, 2},    {1, 5, 1, 1, 1},
                          {2, 1, 9, 5, 7},     {1, 20, 11, 6, 256}, {3, 70, 3, 3, 35},
                          {1, 2, 70, 67, 3},   {0, 4, 3, 3, 4},     {1, 2100, 2, 3, 15}};
  const long before = threads_started();
  long cases = 0;
  for (const Shape& s : shapes) {
    for (const DataType type : {DataType::float32, DataType::float16, DataType::bfloat16}) {
      for (const Layout layout : {Layout::contiguous, Layout::channels_last, Layout::strided}) {
        for (const bool hard : {false, true}) {
          for (const bool broken : {false, true}) {
            const Case c{s.batch, s.channels, s.height, s.width, s.classes,
                         type,    layout,     hard,     broken};
            check_centroids(c);
            check_divergence(c, true);
            check_divergence(c, false);
            ++cases;
          }
        }
      }
    }
  }
  // Gradients that outgrow the caches, at sizes that no vector divides.
  for (const Layout layout : {Layout::contiguous, Layout::channels_last}) {
    check_centroids({1, 67, 201, 173, 19, DataType::float32, layout, true, true});
    check_centroids({1, 131, 201, 173, 40, DataType::bfloat16, layout, false, false});
  }
  check(threads_started() > before, "centroids", "never ran on more than one thread");
  std::printf(
      "  class_centroids, symmetric_soft_divergence: %ld cases, 1 = 2 = 7 threads bit for bit\n",
      cases + 4);
}
