// class_centroids and their gradient against double precision.
#include "class_cases.h"

namespace {

ClassRoom centroids(const ClassCase& c, ClassSide& side, int threads, bool* good) {
  ClassRoom room(c);
  ClassCentroidsCall call{side.view(c, room.row, room.weight, good),
                          static_cast<float*>(room.wide.data()),
                          static_cast<float*>(room.narrow.data())};
  class_centroids(call, threads);
  return room;
}

Guarded gradient(const ClassCase& c, ClassRoom& room, const float* slope, bool by_mass,
                 const float* scale, bool channels_last, int threads) {
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

void check_gradient(const ClassCase& c, const ClassSide& side, const Guarded& found,
                    const float* slope, bool by_mass, double scale, bool channels_last) {
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

void check_centroids(const ClassCase& c) {
  if (!chosen()) return;
  ClassSide side(c, 1);
  bool good = false;
  ClassRoom one = centroids(c, side, 1, &good);
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

}  // namespace

void test_class_centroids() {
  const long before = threads_started();
  const long cases = for_each_class_case(check_centroids);
  // Gradients that outgrow the caches, at sizes that no vector divides.
  for (const ClassLayout layout : {ClassLayout::contiguous, ClassLayout::channels_last}) {
    check_centroids({1, 67, 201, 173, 19, DataType::float32, layout, true, true});
    check_centroids({1, 131, 201, 173, 40, DataType::bfloat16, layout, false, false});
  }
  check(threads_started() > before, "centroids", "never ran on more than one thread");
  std::printf("  class_centroids: %ld cases, 1 = 2 = 7 threads bit for bit\n", cases + 4);
}
