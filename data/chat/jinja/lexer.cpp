#include "data/chat/jinja/lexer.h"

#include <algorithm>
#include <array>

#include "data/chat/jinja/value.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

constexpr std::array<std::string_view, 8> kLongOperators = {"//", "**", "==", "!=", ">=", "<=", "~", "|"};
constexpr std::string_view kShortOperators = "+-/*%[](){}<>=.:,;";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c) || (c & 0x80) != 0;
}
bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F); }

// Line ends as "\n", the last one dropped.
std::string with_plain_line_ends(std::string_view source) {
  std::string text;
  for (std::size_t i = 0; i < source.size(); ++i) {
    const bool is_pair = source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n';
    if (!is_pair) {
      text += source[i] == '\r' ? '\n' : source[i];
    }
  }
  if (text.ends_with('\n')) {
    text.pop_back();
  }
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(with_plain_line_ends(source)), rest_(source_) {}

  std::vector<Token> run() {
    try {
      while (!rest_.empty()) {
        lex_text();
      }
    } catch (Failure& failure) {
      failure.line = failure.line == 0 ? line_ : failure.line;
      throw;
    }
    put(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void put(Token::Kind kind, std::string_view text) { tokens_.push_back({kind, std::string(text), line_}); }

  // Takes `count` bytes off the rest.
  std::string_view take(std::size_t count) {
    const std::string_view taken = rest_.substr(0, count);
    line_ += static_cast<int>(std::count(taken.begin(), taken.end(), '\n'));
    if (!taken.empty()) {
      starts_line_ = taken.back() == '\n';
    }
    rest_.remove_prefix(count);
    return taken;
  }
  void take_blanks() {
    std::size_t count = 0;
    while (count < rest_.size() && is_blank(rest_[count])) {
      ++count;
    }
    take(count);
  }

  // What stands before a tag, without what the tag takes away: "-" all white space, a block's or a comment's tag alone
  // in front of it on its line the blanks there.
  [[nodiscard]] std::string_view before_tag(std::string_view text, char sign, bool is_print) const {
    if (sign == '-') {
      while (!text.empty() && is_blank(text.back())) {
        text.remove_suffix(1);
      }
    } else if (sign != '+' && !is_print) {
      const std::size_t newline = text.rfind('\n');
      const std::size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((begin > 0 || starts_line_) &&
          std::all_of(text.begin() + static_cast<std::ptrdiff_t>(begin), text.end(), is_blank)) {
        text = text.substr(0, begin);
      }
    }
    return text;
  }
  [[nodiscard]] static char sign_of(std::string_view text) {
    return !text.empty() && (text.front() == '-' || text.front() == '+') ? text.front() : ' ';
  }
  void put_text(std::string_view text) {
    if (!text.empty()) {
      put(Token::Kind::kText, text);
    }
  }

  // Text up to a tag, and the tag.
  void lex_text() {
    std::size_t at = rest_.find('{');
    while (at != std::string_view::npos &&
           (at + 1 == rest_.size() || std::string_view("{%#").find(rest_[at + 1]) == std::string_view::npos)) {
      at = rest_.find('{', at + 1);
    }
    if (at == std::string_view::npos) {
      put_text(take(rest_.size()));
      return;
    }
    const char kind = rest_[at + 1];
    const char sign = sign_of(rest_.substr(at + 2));
    put_text(before_tag(rest_.substr(0, at), sign, kind == '{'));
    take(at);
    take(sign == ' ' ? 2 : 3);
    if (kind == '#') {
      lex_comment();
    } else if (kind == '{') {
      put(Token::Kind::kPrintBegin, "{{");
      lex_tag("}}", Token::Kind::kPrintEnd);
    } else if (!lex_raw()) {
      put(Token::Kind::kBlockBegin, "{%");
      lex_tag("%}", Token::Kind::kBlockEnd);
    }
  }

  // Takes a closing "%}" with its sign and the white space that it takes away; false where there is none.
  bool take_closing(std::string_view closing, bool is_block) {
    const char sign = sign_of(rest_);
    const bool is_signed = sign == '-' || (sign == '+' && is_block);
    if (!rest_.substr(is_signed ? 1 : 0).starts_with(closing)) {
      return false;
    }
    std::size_t size = closing.size() + (is_signed ? 1 : 0);
    if (sign == '-') {
      take(size);
      take_blanks();
      return true;
    }
    if (is_block && !is_signed && rest_.size() > size && rest_[size] == '\n') {
      ++size;
    }
    take(size);
    return true;
  }

  void lex_comment() {
    const int begin = line_;
    const std::size_t end = rest_.find("#}");
    if (end == std::string_view::npos) {
      throw Failure{"a comment has no end, expected #}", begin};
    }
    const bool has_sign = end > 0 && (rest_[end - 1] == '-' || rest_[end - 1] == '+');
    take(has_sign ? end - 1 : end);
    take_closing("#}", true);
  }

  // {% raw %} ... {% endraw %}, of which the opening is taken; false where it is another tag.
  bool lex_raw() {
    std::string_view text = rest_;
    const auto skip_blanks = [&] { text.remove_prefix(std::min(text.find_first_not_of(" \t\n\v\f"), text.size())); };
    skip_blanks();
    if (!text.starts_with("raw")) {
      return false;
    }
    text.remove_prefix(3);
    skip_blanks();
    const bool trims = text.starts_with("-%}");
    if (!trims && !text.starts_with("%}")) {
      return false;
    }
    const int begin = line_;
    take(rest_.size() - text.size() + (trims ? 3 : 2));
    if (trims) {
      take_blanks();
    }
    for (std::size_t at = rest_.find("{%"); at != std::string_view::npos; at = rest_.find("{%", at + 1)) {
      text = rest_.substr(at + 2);
      const char sign = sign_of(text);
      text.remove_prefix(sign == ' ' ? 0 : 1);
      skip_blanks();
      if (!text.starts_with("endraw")) {
        continue;
      }
      text.remove_prefix(6);
      skip_blanks();
      const std::size_t tag_end = rest_.size() - text.size();
      put_text(before_tag(rest_.substr(0, at), sign, false));
      take(tag_end);
      expect(take_closing("%}", true), "expected %}} behind endraw");
      return true;
    }
    throw Failure{"raw has no end, expected {% endraw %}", begin};
  }

  // The tokens of a tag, up to its closing. Braces in it must be closed first.
  void lex_tag(std::string_view closing, Token::Kind closing_kind) {
    const int begin = line_;
    std::string open;
    while (true) {
      take_blanks();
      if (rest_.empty()) {
        throw Failure{fmt::format("the tag has no end, expected {}", closing), begin};
      }
      if (open.empty() && take_closing(closing, closing_kind == Token::Kind::kBlockEnd)) {
        tokens_.push_back({closing_kind, std::string(closing), line_});
        return;
      }
      lex_token(open);
    }
  }

  void lex_token(std::string& open) {
    const char c = rest_.front();
    if (is_digit(c)) {
      lex_number();
    } else if (is_name_character(c)) {
      const auto end = std::ranges::find_if_not(rest_, is_name_character);
      put(Token::Kind::kName, take(static_cast<std::size_t>(end - rest_.begin())));
    } else if (c == '\'' || c == '"') {
      lex_string();
    } else {
      lex_operator(open);
    }
  }

  void lex_operator(std::string& open) {
    for (const std::string_view name : kLongOperators) {
      if (rest_.starts_with(name)) {
        put(Token::Kind::kOperator, take(name.size()));
        return;
      }
    }
    const char c = rest_.front();
    expect(kShortOperators.find(c) != std::string_view::npos, "{} has no meaning in a tag",
           in_quotes(rest_.substr(0, 1)));
    if (c == '(' || c == '[' || c == '{') {
      open += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      expect(open.ends_with(c), "{} was not opened", c);
      open.pop_back();
    }
    put(Token::Kind::kOperator, take(1));
  }

  // Digits with single underscores between them.
  [[nodiscard]] std::size_t digits_end(std::size_t at) const {
    while (at < rest_.size() &&
           (is_digit(rest_[at]) || (rest_[at] == '_' && at + 1 < rest_.size() && is_digit(rest_[at + 1])))) {
      ++at;
    }
    return at;
  }
  [[nodiscard]] bool digit_at(std::size_t at) const { return at < rest_.size() && is_digit(rest_[at]); }

  void lex_number() {
    std::size_t end = digits_end(0);
    bool is_float = false;
    const bool behind_dot = !tokens_.empty() && tokens_.back().is(Token::Kind::kOperator, ".");
    if (!behind_dot && rest_.substr(end).starts_with('.') && digit_at(end + 1)) {
      end = digits_end(end + 1);
      is_float = true;
    }
    if (!behind_dot && end < rest_.size() && (rest_[end] == 'e' || rest_[end] == 'E')) {
      const std::size_t sign = end + 1 < rest_.size() && (rest_[end + 1] == '+' || rest_[end + 1] == '-') ? 1 : 0;
      if (digit_at(end + 1 + sign)) {
        end = digits_end(end + 1 + sign);
        is_float = true;
      }
    }
    std::string text(take(end));
    std::erase(text, '_');
    expect(rest_.empty() || !is_name_character(rest_.front()), "{} is not a number",
           in_quotes(text + std::string(rest_.substr(0, 1))));
    put(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, text);
  }

  void lex_string() {
    const char quote = rest_.front();
    std::size_t end = 1;
    while (end < rest_.size() && rest_[end] != quote) {
      end += rest_[end] == '\\' ? 2 : 1;
    }
    expect(end < rest_.size(), "a text has no end, expected {}", quote);
    const int line = line_;
    const std::string text = unescaped(rest_.substr(1, end - 1));
    take(end + 1);
    tokens_.push_back({Token::Kind::kString, text, line});
  }

  // Python's escapes; a backslash before something else stays.
  [[nodiscard]] static std::string unescaped(std::string_view text) {
    constexpr std::string_view kLetters = "\\'\"abfnrtv";
    constexpr std::string_view kMeant = "\\'\"\a\b\f\n\r\t\v";
    std::string result;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        result += text[i];
        continue;
      }
      const char c = text[++i];
      if (const std::size_t found = kLetters.find(c); found != std::string_view::npos) {
        result += kMeant[found];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        append_code(result, text.substr(i + 1, digits), digits, 16);
        i += digits;
      } else if (c >= '0' && c <= '7') {
        const std::size_t digits = std::min(text.find_first_not_of("01234567", i), i + 3) - i;
        append_code(result, text.substr(i, std::min(digits, text.size() - i)), std::min(digits, text.size() - i), 8);
        i += std::min(digits, text.size() - i) - 1;
      } else if (c != '\n') {
        expect(c != 'N', "the escape \\N is not supported");
        result += '\\';
        result += c;
      }
    }
    return result;
  }
  static void append_code(std::string& result, std::string_view digits, std::size_t count, unsigned base) {
    std::uint32_t value = 0;
    for (const char c : digits) {
      const unsigned digit =
          is_digit(c) ? static_cast<unsigned>(c - '0') : static_cast<unsigned>((c | 0x20) - 'a' + 10);
      expect(digit < base, "an escape holds {}, expected digits of base {}", in_quotes({&c, 1}), base);
      value = value * base + digit;
    }
    expect(digits.size() == count, "an escape has {} digits, expected {}", digits.size(), count);
    expect(value <= 0x10FFFF && (value < 0xD800 || value > 0xDFFF), "an escape stands for no character");
    append_utf8(result, value);
  }

  std::string source_;
  std::string_view rest_;
  std::vector<Token> tokens_;
  int line_ = 1;
  bool starts_line_ = true;  // what was taken last ended with a line
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace lockstep::jinja
