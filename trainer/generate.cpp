#include "trainer/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "ops/tape.h"

namespace lockstep {
namespace {

struct Candidate {
  std::int32_t token = 0;
  double weight = 0;  // proportional to its probability
};

// The tokens that may be drawn, the most likely first.
std::vector<Candidate> candidates_of(std::span<const float> logits, const SamplingOptions& options) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto more_likely = [&](std::int32_t a, std::int32_t b) {
    const float la = logits[static_cast<std::size_t>(a)];
    const float lb = logits[static_cast<std::size_t>(b)];
    return la > lb || (la == lb && a < b);
  };
  const std::size_t k =
      options.top_k > 0 ? std::min(order.size(), static_cast<std::size_t>(options.top_k)) : order.size();
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(), more_likely);

  const double largest = static_cast<double>(logits[static_cast<std::size_t>(order.front())]);
  std::vector<Candidate> candidates;
  double total = 0;
  for (std::size_t i = 0; i < k; ++i) {
    const double logit = static_cast<double>(logits[static_cast<std::size_t>(order[i])]);
    candidates.push_back({order[i], std::exp((logit - largest) / options.temperature)});
    total += candidates.back().weight;
  }
  double kept = 0;
  std::size_t count = 0;
  while (count < candidates.size() && (count == 0 || kept < options.top_p * total)) {
    kept += candidates[count++].weight;
  }
  candidates.resize(count);
  return candidates;
}

std::vector<float> on_host(const Tensor& logits, Backend& backend) {
  std::vector<float> values(static_cast<std::size_t>(logits.count()));
  backend.copy(logits.buffer(), view_of(std::span(values)));
  return values;
}

}  // namespace

std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, std::uint64_t index) {
  if (options.temperature == 0) {
    return static_cast<std::int32_t>(std::ranges::max_element(logits) - logits.begin());
  }
  const std::vector<Candidate> candidates = candidates_of(logits, options);
  double total = 0;
  for (const Candidate& candidate : candidates) {
    total += candidate.weight;
  }
  const auto words = philox(random_key(options.seed, RandomUse::kGeneration), index);
  double left = uniform_double(words[0], words[1]) * total;
  for (const Candidate& candidate : candidates) {
    left -= candidate.weight;
    if (left < 0) {
      return candidate.token;
    }
  }
  return candidates.back().token;
}

void generate(const Replica& replica, Arena& arena, std::span<const std::int32_t> prompt,
              const GenerateOptions& options, const std::function<bool(std::int32_t)>& on_token) {
  require(!prompt.empty(), "generate: the prompt is empty");
  const std::int64_t context = replica.model().architecture().context;
  KvCache cache(replica.model().architecture(), replica.working_dtype(), replica.backend());
  Tape tape(replica.backend(), arena, nullptr);
  std::vector<std::int32_t> text(prompt.begin(), prompt.end());
  std::size_t pending = std::min(text.size(), static_cast<std::size_t>(context));  // not in the cache yet

  for (std::int64_t made = 0; made < options.max_tokens; ++made) {
    if (cache.length() + static_cast<std::int64_t>(pending) > context) {
      cache.clear();
      pending = static_cast<std::size_t>(std::max<std::int64_t>(context / 2, 1));
    }
    const Tensor logits = replica.model().next_logits(tape, replica.weights(), std::span(text).last(pending), cache);
    const std::int32_t token =
        sample_token(on_host(logits, replica.backend()), options.sampling, static_cast<std::uint64_t>(made));
    if (std::ranges::find(options.stop_tokens, token) != options.stop_tokens.end()) {
      return;
    }
    text.push_back(token);
    pending = 1;
    if (!on_token(token)) {
      return;
    }
  }
}

}  // namespace lockstep
