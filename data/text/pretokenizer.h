// PreTokenizer cuts a text into the pieces that BPE merges within: words, roughly.
//
// It is a sequence of steps, each cutting the pieces of the one before. Pieces cover the text, in order, without gaps.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/pattern_scanner.h"
#include "data/text/regex.h"

namespace lockstep {

// What becomes of a match of a step's pattern and of what lies between matches. Named as in tokenizer.json, whose
// "Removed" is missing: it would lose text.
enum class SplitBehavior { kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  std::string pattern;  // a regular expression or, when `literal`, the text to find
  bool literal = false;
  bool invert = false;  // the places between matches count as the matches
  SplitBehavior behavior = SplitBehavior::kIsolated;

  friend bool operator==(const SplitStep&, const SplitStep&) = default;
};

[[nodiscard]] SplitStep step_of(KnownPattern pattern);

class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void take(std::string_view piece) = 0;
};

class PreTokenizer {
 public:
  // One per thread.
  class Scratch {
   public:
    explicit Scratch(const PreTokenizer& pretokenizer);

   private:
    friend class PreTokenizer;
    std::vector<std::optional<Regex::Scratch>> regexes_;
  };

  // Throws Error(kUnsupported), which begins with `name`, for a pattern that cannot be used.
  PreTokenizer(const std::vector<SplitStep>& steps, std::string_view name);

  // Calls sink.take() with each piece of `text`, which is valid UTF-8 and not empty.
  void split(std::string_view text, Scratch& scratch, PieceSink& sink) const;

  // The whole work, when it is a single well-known pattern: the caller may then call piece_end() itself.
  [[nodiscard]] std::optional<KnownPattern> single_known_pattern() const;

  // As Tokenizer::safe_prefix, without regard to added tokens.
  [[nodiscard]] std::size_t safe_prefix(std::string_view text) const;

 private:
  struct Step {
    SplitStep what;
    std::optional<KnownPattern> known;
    std::optional<Regex> regex;
  };
  class Stage;

  static void run_step(const Step& step, std::optional<Regex::Scratch>& scratch, std::string_view piece,
                       PieceSink& sink);

  std::vector<Step> steps_;
};

}  // namespace lockstep
