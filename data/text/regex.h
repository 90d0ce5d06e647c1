// A regular expression of a tokenizer.json, compiled by PCRE2 and, where the machine allows it, to machine code.
//
// Tokenizers' files are written for the Oniguruma engine. The expression is rewritten where the two engines differ (\s
// is the property White_Space, ^ and $ stand at every line), and refused where the difference is not known to be none.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

struct Match {
  std::size_t begin = 0;
  std::size_t end = 0;
};

class Regex {
 public:
  // What matching needs besides the expression: one per thread and expression.
  class Scratch {
   public:
    explicit Scratch(const Regex& regex);
    ~Scratch();
    Scratch(Scratch&&) noexcept;
    Scratch& operator=(Scratch&&) noexcept;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class Regex;
    struct State;
    std::unique_ptr<State> state_;
  };

  // Throws Error(kUnsupported), which begins with `name`, when the expression cannot be compiled or would mean
  // something else.
  Regex(std::string_view expression, std::string_view name);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // The first match that is not empty and begins at or after `from`. `text` is valid UTF-8.
  // Throws Error(kUnsupported) when the engine gives up: the expression backtracks too much on this text.
  [[nodiscard]] std::optional<Match> find(std::string_view text, std::size_t from, Scratch& scratch) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lockstep
