// symmetric_soft_divergence against Eq. 11 in double precision.
#include "class_cases.h"

namespace {

// Eq. 11 in double; slopes by differences are checked from Python.
double divergence(const ClassCase& c, const ClassSide& s, const ClassSide& t, bool softmax,
                  double eps) {
  double total = 0, present = 0;
  for (int64_t k = 0; k < c.classes; ++k) {
    const ClassSide* sides[2] = {&s, &t};
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

void check_divergence(const ClassCase& c, bool softmax) {
  if (!chosen()) return;
  ClassSide s(c, 4), t(c, 5);
  const auto run = [&](int threads) {
    ClassRoom a(c), b(c);
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

void test_symmetric_soft_divergence() {
  const long before = threads_started();
  const long cases = for_each_class_case([](const ClassCase& c) {
    check_divergence(c, true);
    check_divergence(c, false);
  });
  check(threads_started() > before, "divergence", "never ran on more than one thread");
  std::printf("  symmetric_soft_divergence: %ld cases, 1 = 2 = 7 threads bit for bit\n", 2 * cases);
}
