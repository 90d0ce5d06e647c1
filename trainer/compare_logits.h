// How far two models are apart on the same text: what an export or a quantisation has cost.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/tape.h"
#include "trainer/replica.h"

namespace lockstep {

// A stretch of tokens that a model reads at once.
struct TokenWindow {
  std::vector<std::int32_t> inputs;   // at most the context
  std::vector<std::int32_t> targets;  // the token after each input, -1: none is known
};

// Logits [inputs, vocab] of the token after each input, on the host. `tape` must not record. Throws Error(kUsage) for a
// window longer than the context, or a token outside the vocabulary.
[[nodiscard]] std::vector<float> logits_of(const Replica& replica, Tape& tape, const TokenWindow& window);

// Of the targets, under softmax(logits).
class TextLoss {
 public:
  void add(std::span<const float> logits, std::span<const std::int32_t> targets);
  [[nodiscard]] std::int64_t tokens() const { return tokens_; }
  [[nodiscard]] double perplexity() const;  // exp of the mean of -log p(target)

 private:
  double sum_ = 0;
  std::int64_t tokens_ = 0;
};

// Between the distributions that two models give for the same positions. All sums are in f64; equal logits give zeros.
// What is not finite in one of the models makes the figures NaN.
class LogitsDifference {
 public:
  // Rows [n, vocab] of both.
  void add(std::span<const float> model, std::span<const float> other, std::int64_t vocab);

  [[nodiscard]] std::int64_t positions() const { return positions_; }
  // Of any logit, and in units of the model's logit of the largest magnitude.
  [[nodiscard]] double largest() const { return largest_; }
  [[nodiscard]] double relative() const { return largest_ > 0 ? largest_ / largest_logit_ : largest_; }
  // KL(model || other) = sum p (log p - log q) of a position, in nats (Kullback, Leibler 1951).
  [[nodiscard]] double mean_kl() const { return kl_sum_ / static_cast<double>(positions_); }
  [[nodiscard]] double largest_kl() const { return largest_kl_; }
  // The share of positions at which both have the same likeliest token: the first of the largest logits.
  [[nodiscard]] double same_top() const { return static_cast<double>(same_top_) / static_cast<double>(positions_); }

 private:
  std::int64_t positions_ = 0;
  std::int64_t same_top_ = 0;
  double largest_ = 0;
  double largest_logit_ = 0;
  double kl_sum_ = 0;
  double largest_kl_ = 0;
};

}  // namespace lockstep
