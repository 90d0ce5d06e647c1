#include "data/text/pretokenizer.h"

#include <cassert>

namespace lockstep {
namespace {

// Joins matches and the places between them as a behavior asks, and hands the pieces on. They come in order, adjacent.
class Joiner {
 public:
  Joiner(SplitBehavior behavior, PieceSink& sink) : behavior_(behavior), sink_(sink) {}

  void take(std::string_view part, bool is_match) {
    if (part.empty()) {
      return;
    }
    if (!held_.empty() && joins_held(is_match)) {
      held_ = {held_.data(), held_.size() + part.size()};
      held_is_match_ = is_match;
      if (behavior_ != SplitBehavior::kContiguous) {
        flush();
      }
      return;
    }
    flush();
    held_ = part;
    held_is_match_ = is_match;
  }

  void flush() {
    if (!held_.empty()) {
      sink_.take(held_);
      held_ = {};
    }
  }

 private:
  [[nodiscard]] bool joins_held(bool is_match) const {
    switch (behavior_) {
      case SplitBehavior::kIsolated:
        return false;
      case SplitBehavior::kMergedWithPrevious:
        return is_match && !held_is_match_;
      case SplitBehavior::kMergedWithNext:
        return !is_match && held_is_match_;
      case SplitBehavior::kContiguous:
        return is_match == held_is_match_;
    }
    return false;
  }

  SplitBehavior behavior_;
  PieceSink& sink_;
  std::string_view held_;
  bool held_is_match_ = false;
};

bool is_number_step(const SplitStep& step) { return step.pattern == R"(\p{N})" && !step.literal && !step.invert; }

}  // namespace

// A step with the place where its pieces go.
class PreTokenizer::Stage : public PieceSink {
 public:
  Stage(const Step& step, std::optional<Regex::Scratch>& scratch, PieceSink& next)
      : step_(step), scratch_(scratch), next_(next) {}
  void take(std::string_view piece) override { run_step(step_, scratch_, piece, next_); }

 private:
  const Step& step_;
  std::optional<Regex::Scratch>& scratch_;
  PieceSink& next_;
};

SplitStep step_of(KnownPattern pattern) { return SplitStep{.pattern = std::string(expression_of(pattern))}; }

PreTokenizer::Scratch::Scratch(const PreTokenizer& pretokenizer) {
  for (const Step& step : pretokenizer.steps_) {
    regexes_.push_back(step.regex ? std::make_optional<Regex::Scratch>(*step.regex) : std::nullopt);
  }
}

PreTokenizer::PreTokenizer(const std::vector<SplitStep>& steps, std::string_view name) {
  for (const SplitStep& what : steps) {
    Step step{what, std::nullopt, std::nullopt};
    // Their pieces cover the text, so there is nothing between matches for `invert` to swap.
    if (!what.literal && what.behavior == SplitBehavior::kIsolated) {
      step.known = known_pattern(what.pattern);
    }
    if (!what.literal && !step.known) {
      step.regex.emplace(what.pattern, name);
    }
    steps_.push_back(std::move(step));
  }
}

void PreTokenizer::run_step(const Step& step, std::optional<Regex::Scratch>& scratch, std::string_view piece,
                            PieceSink& sink) {
  if (step.known) {
    for (std::size_t begin = 0; begin < piece.size();) {
      const std::size_t end = piece_end(*step.known, piece, begin);
      sink.take(piece.substr(begin, end - begin));
      begin = end;
    }
    return;
  }
  const auto find = [&](std::size_t from) -> std::optional<Match> {
    if (step.regex) {
      return step.regex->find(piece, from, *scratch);
    }
    const std::size_t at = piece.find(step.what.pattern, from);
    return at == std::string_view::npos ? std::nullopt : std::optional(Match{at, at + step.what.pattern.size()});
  };
  Joiner joiner(step.what.behavior, sink);
  std::size_t begin = 0;
  while (const std::optional<Match> match = begin < piece.size() ? find(begin) : std::nullopt) {
    joiner.take(piece.substr(begin, match->begin - begin), step.what.invert);
    joiner.take(piece.substr(match->begin, match->end - match->begin), !step.what.invert);
    begin = match->end;
  }
  joiner.take(piece.substr(begin), step.what.invert);
  joiner.flush();
}

void PreTokenizer::split(std::string_view text, Scratch& scratch, PieceSink& sink) const {
  assert(!text.empty());
  // Built from the last step to the first; reserved, so that the links stay valid.
  std::vector<Stage> stages;
  stages.reserve(steps_.size());
  PieceSink* next = &sink;
  for (std::size_t i = steps_.size(); i-- > 0;) {
    next = &stages.emplace_back(steps_[i], scratch.regexes_[i], *next);
  }
  next->take(text);
}

std::optional<KnownPattern> PreTokenizer::single_known_pattern() const {
  return steps_.size() == 1 ? steps_.front().known : std::nullopt;
}

std::size_t PreTokenizer::safe_prefix(std::string_view text) const {
  if (steps_.empty() || !steps_.back().known) {
    return 0;
  }
  for (std::size_t i = 0; i + 1 < steps_.size(); ++i) {
    if (!is_number_step(steps_[i].what)) {
      return 0;
    }
  }
  return last_certain_cut(*steps_.back().known, text);
}

}  // namespace lockstep
