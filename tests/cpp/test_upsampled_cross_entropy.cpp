// upsampled_cross_entropy, loss and gradient, against Eq. 7 in double precision.
#include "loss_cases.h"

using namespace cscl::cpu;

namespace {

constexpr int64_t kIgnored = 255;

void check_case(const LossCase& c) {
  if (!chosen()) return;
  const std::string where = c.text("upsampled_cross_entropy");
  const LossLogits logits(c, 1);
  std::vector<int64_t> labels;
  Random random(static_cast<uint64_t>(c.pixels() + c.classes));
  bool in_range = true;
  for (int64_t i = 0; i < c.pixels(); ++i) {
    const double dice = random.uniform();
    int64_t label = static_cast<int64_t>(random.uniform() * double(c.classes));
    if (dice < 0.2) label = kIgnored;
    if (c.broken && dice > 0.98) label = dice > 0.99 ? -3 : (int64_t{1} << 32);  // out of range
    in_range = in_range && (label == kIgnored || (label >= 0 && label < c.classes));
    labels.push_back(label);
  }

  double loss = 0;
  int64_t count = 0;
  std::vector<double> gradient;
  for_each_pixel(c, logits, gradient, [&](int64_t, int64_t pixel, std::vector<double>& z) {
    const int64_t label = labels[static_cast<size_t>(pixel)];
    if (label < 0 || label >= c.classes || label == kIgnored) return z.clear();
    ++count;
    const double normaliser = log_sum_exp(z);
    bool spoiled = false;
    for (const double value : z) spoiled = spoiled || std::isnan(value) || value == INFINITY;
    loss += spoiled ? NAN : normaliser - z[static_cast<size_t>(label)];
    for (double& value : z) value = spoiled ? NAN : std::exp(value - normaliser);
    z[static_cast<size_t>(label)] -= 1;
  });

  const auto run = [&](bool channels_last, int threads) {
    LossOutcome outcome(c);
    bool judged = true;
    CrossEntropyCall call;
    call.logits = logits.view;
    call.labels = labels.data();
    call.ignore_index = kIgnored;
    call.labels_in_range = &judged;
    call.result = outcome.result(channels_last);
    upsampled_cross_entropy(call, threads);
    check(judged == in_range, where, "misjudges the labels");
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

void test_upsampled_cross_entropy() {
  const long before = threads_started();
  const long cases = for_each_loss_case(check_case);
  check(threads_started() > before, "upsampled_cross_entropy", "never ran in parallel");
  std::printf("  upsampled_cross_entropy: %ld cases, 1 = 2 = 7 threads bit for bit\n", cases);
}
