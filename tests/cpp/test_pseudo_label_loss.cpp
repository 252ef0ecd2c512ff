// pseudo_label_loss, loss and gradient, against Eq. 7-10 in double precision.
#include "loss_cases.h"

using namespace cscl::cpu;

namespace {

// Thresholds that leave no pixel of these cases within 1e-5 of its decision would be luck: such a
// case is left out, and counted.
long close_calls = 0;

void check_case(const LossCase& c, double gamma, bool other) {
  if (!chosen()) return;
  const std::string where = c.text("pseudo_label_loss") + " gamma " + std::to_string(gamma) +
                            (other ? " labels of another" : "");
  const LossLogits logits(c, 1), teacher(c, 2);
  std::vector<float> thresholds;
  Random random(7);
  for (int64_t k = 0; k < c.classes; ++k) {
    thresholds.push_back(static_cast<float>(0.05 + 0.9 * random.uniform()));
  }

  // Soft labels first, from whoever gives them; an empty one is rejected.
  std::vector<std::vector<double>> labels(static_cast<size_t>(c.pixels()));
  bool close = false;
  std::vector<double> gradient;
  for_each_pixel(c, other ? teacher : logits, gradient,
                 [&](int64_t, int64_t pixel, std::vector<double>& z) {
                   std::vector<double> a;
                   a.swap(z);
                   for (const double value : a) {
                     if (!std::isfinite(value)) return;
                   }
                   const double normaliser = log_sum_exp(a);
                   for (size_t k = 0; k < a.size(); ++k) {
                     a[k] = (a[k] - normaliser - std::log(double(thresholds[k]))) / gamma;
                   }
                   const double cost = log_sum_exp(a);
                   close = close || std::fabs(cost) < 1e-5 / gamma;
                   if (cost <= 0) return;
                   for (double& value : a) value = std::exp(value - cost);
                   labels[static_cast<size_t>(pixel)] = a;
                 });
  if (close) {
    ++close_calls;
    return;
  }
  double loss = 0;
  int64_t count = 0;
  for_each_pixel(c, logits, gradient, [&](int64_t, int64_t pixel, std::vector<double>& z) {
    const std::vector<double>& label = labels[static_cast<size_t>(pixel)];
    for (const double value : z) {
      if (!std::isfinite(value)) return z.clear();
    }
    if (label.empty()) return z.clear();
    ++count;
    const double normaliser = log_sum_exp(z);
    for (size_t k = 0; k < z.size(); ++k) {
      loss -= label[k] * (z[k] - normaliser);
      z[k] = std::exp(z[k] - normaliser) - label[k];
    }
  });

  const auto run = [&](bool channels_last, int threads) {
    LossOutcome outcome(c);
    PseudoLabelLossCall call;
    call.logits = logits.view;
    call.label_logits = teacher.view;
    if (!other) call.label_logits.data = nullptr;
    call.thresholds = thresholds.data();
    call.gamma = gamma;
    call.result = outcome.result(channels_last);
    pseudo_label_loss(call, threads);
    return outcome;
  };
  const bool channels_last = c.layout == LossLayout::channels_last;
  const LossOutcome one = run(channels_last, 1);
  check_outcome(c, where, one, channels_last, loss, count, gradient);
  for (const int threads : {2, 7}) {
    check(run(channels_last, threads) == one, where, "more threads give other bits");
  }
}

}  // namespace

void test_pseudo_label_loss() {
  const long before = threads_started();
  long cases = 0;
  // A power of two, any number, and one so small that the solve is in double.
  for (const double gamma : {0.25, 0.6, 0.03}) {
    for (const bool other : {false, true}) {
      for_each_loss_case([&](const LossCase& c) {
        const bool plain = c.type == DataType::float32 && c.layout == LossLayout::contiguous;
        if (gamma != 0.25 && !plain) return;
        check_case(c, gamma, other);
        ++cases;
      });
    }
  }
  check(threads_started() > before, "pseudo_label_loss", "never ran in parallel");
  check(close_calls < cases / 10, "pseudo_label_loss", "too many cases are too close to call");
  std::printf(
      "  pseudo_label_loss: %ld cases (%ld too close to call), 1 = 2 = 7 threads bit for bit\n",
      cases, close_calls);
}
