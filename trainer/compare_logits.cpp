#include "trainer/compare_logits.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace lockstep {
namespace {

// log of the sum of exp(logit).
double log_sum_exp(std::span<const float> logits) {
  const auto largest = static_cast<double>(*std::ranges::max_element(logits));
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit) - largest);
  }
  return largest + std::log(sum);
}

// As std::max, but NaN stays.
double larger(double a, double b) { return a >= b || std::isnan(a) ? a : b; }

}  // namespace

std::vector<float> logits_of(const Replica& replica, Tape& tape, const TokenWindow& window) {
  const Transformer& model = replica.model();
  const auto count = static_cast<std::int64_t>(window.inputs.size());
  const Tensor logits =
      model.logits(tape, replica.weights(), {.inputs = window.inputs, .targets = {}, .batch = 1, .sequence = count});
  std::vector<float> values(static_cast<std::size_t>(logits.count()));
  replica.backend().copy(logits.buffer(), view_of(std::span(values)));
  replica.backend().synchronize();
  return values;
}

void TextLoss::add(std::span<const float> logits, std::span<const std::int32_t> targets) {
  const std::size_t vocab = logits.size() / targets.size();
  for (std::size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] >= 0) {
      const auto row = logits.subspan(i * vocab, vocab);
      sum_ += log_sum_exp(row) - static_cast<double>(row[static_cast<std::size_t>(targets[i])]);
      ++tokens_;
    }
  }
}

double TextLoss::perplexity() const { return std::exp(sum_ / static_cast<double>(tokens_)); }

void LogitsDifference::add(std::span<const float> model, std::span<const float> other, std::int64_t vocab) {
  assert(model.size() == other.size());
  const auto columns = static_cast<std::size_t>(vocab);
  for (std::size_t begin = 0; begin < model.size(); begin += columns) {
    const auto p = model.subspan(begin, columns);
    const auto q = other.subspan(begin, columns);
    const double sum_p = log_sum_exp(p);
    const double sum_q = log_sum_exp(q);
    double kl = 0;
    for (std::size_t i = 0; i < columns; ++i) {
      const double log_p = static_cast<double>(p[i]) - sum_p;
      const double log_q = static_cast<double>(q[i]) - sum_q;
      kl += std::exp(log_p) * (log_p - log_q);
      largest_ = larger(largest_, std::abs(static_cast<double>(p[i]) - static_cast<double>(q[i])));
      largest_logit_ = larger(largest_logit_, std::abs(static_cast<double>(p[i])));
    }
    kl = larger(kl, 0.0);  // less is rounding
    kl_sum_ += kl;
    largest_kl_ = larger(largest_kl_, kl);
    same_top_ += std::ranges::max_element(p) - p.begin() == std::ranges::max_element(q) - q.begin() ? 1 : 0;
    ++positions_;
  }
}

}  // namespace lockstep
