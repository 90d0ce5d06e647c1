#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/text/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <new>

#include "base/error.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

// The property White_Space as the inside of a character class, and what it leaves.
constexpr std::string_view kSpaceSet =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpaceSet =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

// Rewrites an expression for PCRE2; see the header.
class Translator {
 public:
  Translator(std::string_view expression, std::string_view name) : in_(expression), name_(name) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_character(c);
      } else if (c == '[') {
        open_class();
      } else if (c == '(') {
        group();
      } else if (in_.substr(at_, 2) == "{," || in_.substr(at_, 2) == "}+") {
        refuse(in_.substr(at_, 2));
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  void copy(std::size_t n) {
    out_.append(in_.substr(at_, n));
    at_ += n;
  }

  [[noreturn]] void refuse(std::string_view what) const {
    fail(ErrorCode::kUnsupported, "{}: the pattern {} uses {} at byte {}, which is not supported", name_,
         in_quotes(in_), what, at_);
  }

  void escape() {
    const char c = at_ + 1 < in_.size() ? in_[at_ + 1] : '\0';
    const auto is_word = [](char x) {
      return (x >= 'a' && x <= 'z') || (x >= 'A' && x <= 'Z') || (x >= '0' && x <= '9') || x == '\0';
    };
    if (c == 's' || c == 'S') {
      const std::string_view set = c == 's' ? kSpaceSet : kNotSpaceSet;
      out_ += in_class_ ? std::string(set) : "[" + std::string(set) + "]";
      at_ += 2;
      return;
    }
    constexpr std::string_view kSame = "pPdDrntf";
    const bool hexadecimal = c == 'x' && at_ + 2 < in_.size() && in_[at_ + 2] == '{';
    if (is_word(c) && kSame.find(c) == std::string_view::npos && !hexadecimal) {
      refuse(c == '\0' ? std::string("a \\ at its end") : fmt::format("\\{}", c));
    }
    copy(2);
    if ((c == 'p' || c == 'P' || c == 'x') && at_ < in_.size() && in_[at_] == '{') {
      copy(std::min(in_.find('}', at_), in_.size() - 1) + 1 -
           at_);  // the name of a property or the number of a character
    }
  }

  void open_class() {
    in_class_ = true;
    copy(1);
    if (at_ < in_.size() && in_[at_] == '^') {
      copy(1);
    }
    if (at_ < in_.size() && in_[at_] == ']') {
      refuse("an empty character class");
    }
  }

  void class_character(char c) {
    if (c == '[') {
      refuse("a character class in a character class");
    }
    if (c == '&' && in_.substr(at_, 2) == "&&") {
      refuse("an intersection of character classes");
    }
    in_class_ = c != ']';
    copy(1);
  }

  void group() {
    constexpr std::array<std::string_view, 8> kSame = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?i)"};
    for (const std::string_view opening : kSame) {
      if (in_.substr(at_, opening.size()) == opening) {
        copy(opening.size());
        return;
      }
    }
    if (in_.substr(at_, 2) == "(?" || in_.substr(at_, 2) == "(*") {
      refuse(in_quotes(in_.substr(at_, 3)));
    }
    copy(1);
  }

  std::string_view in_;
  std::string_view name_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

struct Release {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};

template <typename T>
using Owned = std::unique_ptr<T, Release>;

template <typename T>
Owned<T> owned(T* p) {
  if (p == nullptr) {
    throw std::bad_alloc();
  }
  return Owned<T>(p);
}

std::string text_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

constexpr std::size_t kJitStackBytes = std::size_t{32} << 10;
constexpr std::size_t kMaxJitStackBytes = std::size_t{64} << 20;  // address space; memory as it is used

}  // namespace

struct Regex::State {
  std::string name;
  std::string expression;
  Owned<pcre2_code> code;
};

struct Regex::Scratch::State {
  Owned<pcre2_match_data> match;
  Owned<pcre2_match_context> context;
  Owned<pcre2_jit_stack> stack;
};

Regex::Scratch::Scratch(const Regex& regex)
    : state_(new State{owned(pcre2_match_data_create_from_pattern(regex.state_->code.get(), nullptr)),
                       owned(pcre2_match_context_create(nullptr)), nullptr}) {
  // Without a stack of its own, compiled code has 32 KiB and fails on long matches. A machine that forbids code made at
  // run time has no such stack: there the interpreter matches.
  state_->stack.reset(pcre2_jit_stack_create(kJitStackBytes, kMaxJitStackBytes, nullptr));
  if (state_->stack != nullptr) {
    pcre2_jit_stack_assign(state_->context.get(), nullptr, state_->stack.get());
  }
}

Regex::Scratch::~Scratch() = default;
Regex::Scratch::Scratch(Scratch&&) noexcept = default;
Regex::Scratch& Regex::Scratch::operator=(Scratch&&) noexcept = default;

Regex::Regex(std::string_view expression, std::string_view name)
    : state_(new State{std::string(name), std::string(expression), nullptr}) {
  const std::string translated = Translator(expression, name).run();
  const auto context = owned(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE place = 0;
  state_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &place,
                                   context.get()));
  if (state_->code == nullptr) {
    fail(ErrorCode::kUnsupported, "{}: the pattern {} cannot be compiled: {}", name, in_quotes(expression),
         text_of(error));
  }
  // Fails where the machine forbids code made at run time; matching is then slower and otherwise the same.
  static_cast<void>(pcre2_jit_compile(state_->code.get(), PCRE2_JIT_COMPLETE));
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

std::optional<Match> Regex::find(std::string_view text, std::size_t from, Scratch& scratch) const {
  const int found =
      pcre2_match(state_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                  PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, scratch.state_->match.get(), scratch.state_->context.get());
  if (found == PCRE2_ERROR_NOMATCH) {
    return std::nullopt;
  }
  if (found < 0) {
    fail(ErrorCode::kUnsupported, "{}: the pattern {} gave up on a text of {} bytes: {}", state_->name,
         in_quotes(state_->expression), text.size(), text_of(found));
  }
  const PCRE2_SIZE* const bounds = pcre2_get_ovector_pointer(scratch.state_->match.get());
  return Match{bounds[0], bounds[1]};
}

}  // namespace lockstep
