// How values are printed: Python's str() and repr(), and json.dumps().
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "data/chat/jinja/value.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

// Appends ASCII with the mark of `like`.
void append(Text& text, std::string_view ascii, char32_t like = 0) {
  for (const char c : ascii) {
    text.push_back(marked_as(like, static_cast<unsigned char>(c)));
  }
}

void append_repr(Text& out, const Text& text) {
  const bool in_double = text.find(U'\'') != Text::npos && text.find(U'"') == Text::npos;
  const char32_t quote = in_double ? U'"' : U'\'';
  out.push_back(quote);
  for (const char32_t c : text) {
    const char32_t point = code_point(c);
    if (point == quote || point == U'\\') {
      out.push_back(marked_as(c, U'\\'));
      out.push_back(c);
    } else if (point == U'\n' || point == U'\r' || point == U'\t') {
      append(out, point == U'\n' ? "\\n" : point == U'\r' ? "\\r" : "\\t", c);
    } else if (is_printable(point)) {
      out.push_back(c);
    } else {
      const auto value = static_cast<std::uint32_t>(point);
      append(out,
             value <= 0xFF     ? fmt::format("\\x{:02x}", value)
             : value <= 0xFFFF ? fmt::format("\\u{:04x}", value)
                               : fmt::format("\\U{:08x}", value),
             c);
    }
  }
  out.push_back(quote);
}

class Printer {
 public:
  explicit Printer(Budget& budget) : budget_(budget) {}

  void add(const Value& value) {
    budget_.charge(1);
    if (const Text* const text = value.text()) {
      budget_.charge(text->size());
      append_repr(out_, *text);
    } else if (const Sequence* const sequence = value.sequence()) {
      add(*sequence);
    } else if (const Dict* const dict = value.dict()) {
      append(out_, "{");
      add_entries(dict->entries);
      append(out_, "}");
    } else if (const Namespace* const names = value.name_space()) {
      add(*names);
    } else if (const bool* const flag = value.get_if<bool>()) {
      append(out_, *flag ? "True" : "False");
    } else if (const auto whole = value.integer()) {
      append(out_, std::to_string(*whole));
    } else if (const auto number = value.number()) {
      append(out_, float_repr(*number));
    } else if (value.is_none() || value.is_undefined()) {
      append(out_, value.is_none() ? "None" : "Undefined");
    } else {
      refuse("a {} cannot be printed", value.type());
    }
  }
  [[nodiscard]] Text take() { return std::move(out_); }

 private:
  void add(const Sequence& sequence) {
    const SequenceKind kind = sequence.kind;
    expect(kind != SequenceKind::kGenerator && kind != SequenceKind::kRange,
           "what a filter goes through, or a range, cannot be printed; expected |list behind it");
    const bool is_view = kind >= SequenceKind::kKeys;
    const bool is_tuple = kind == SequenceKind::kTuple;
    append(out_, kind == SequenceKind::kKeys     ? "dict_keys(["
                 : kind == SequenceKind::kValues ? "dict_values(["
                 : kind == SequenceKind::kItems  ? "dict_items(["
                 : is_tuple                      ? "("
                                                 : "[");
    for (std::size_t i = 0; i < sequence.items.size(); ++i) {
      append(out_, i > 0 ? ", " : "");
      add(sequence.items[i]);
    }
    append(out_, is_view ? "])" : !is_tuple ? "]" : sequence.items.size() == 1 ? ",)" : ")");
  }
  void add_entries(const Entries& entries) {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      append(out_, i > 0 ? ", " : "");
      add(entries[i].first);
      append(out_, ": ");
      add(entries[i].second);
    }
  }
  // A namespace can hold itself.
  void add(const Namespace& names) {
    expect(namespaces_ == 0, "a namespace that holds a namespace cannot be printed");
    ++namespaces_;
    append(out_, "<Namespace {");
    for (std::size_t i = 0; i < names.entries.size(); ++i) {
      append(out_, i > 0 ? ", " : "");
      add(Value::text(names.entries[i].first));
      append(out_, ": ");
      add(names.entries[i].second);
    }
    append(out_, "}>");
    --namespaces_;
  }

  Budget& budget_;
  Text out_;
  int namespaces_ = 0;
};

std::string json_number(double value) {
  return std::isnan(value) ? "NaN" : std::isinf(value) ? (value < 0 ? "-Infinity" : "Infinity") : float_repr(value);
}

class JsonPrinter {
 public:
  JsonPrinter(const JsonStyle& style, Budget& budget)
      : style_(style),
        budget_(budget),
        comma_(style.separators ? style.separators->first : to_text(style.indent ? "," : ", ")),
        colon_(style.separators ? style.separators->second : to_text(": ")) {}

  void add(const Value& value, std::size_t level) {
    budget_.charge(1);
    if (const Text* const text = value.text()) {
      add(*text);
    } else if (const Sequence* const sequence = value.sequence();
               sequence != nullptr && sequence->kind <= SequenceKind::kTuple) {
      add_all(sequence->items.size(), "[]", level, [&](std::size_t i) { add(sequence->items[i], level + 1); });
    } else if (const Dict* const dict = value.dict()) {
      add(*dict, level);
    } else if (const bool* const flag = value.get_if<bool>()) {
      append(out_, *flag ? "true" : "false");
    } else if (const auto whole = value.integer()) {
      append(out_, std::to_string(*whole));
    } else if (const auto number = value.number()) {
      append(out_, json_number(*number));
    } else {
      expect(value.is_none(), "tojson: a value of the type {} has no form in JSON", value.type());
      append(out_, "null");
    }
  }
  [[nodiscard]] Text take() { return std::move(out_); }

 private:
  template <typename Add>
  void add_all(std::size_t count, std::string_view brackets, std::size_t level, const Add& add_one) {
    append(out_, brackets.substr(0, 1));
    for (std::size_t i = 0; i < count; ++i) {
      out_ += i > 0 ? comma_ : Text();
      new_line(level + 1);
      add_one(i);
    }
    if (count > 0) {
      new_line(level);
    }
    append(out_, brackets.substr(1));
  }
  void new_line(std::size_t level) {
    if (style_.indent) {
      budget_.charge(1 + level * style_.indent->size());
      out_.push_back(U'\n');
      for (std::size_t i = 0; i < level; ++i) {
        out_ += *style_.indent;
      }
    }
  }
  void add(const Dict& dict, std::size_t level) {
    Entries entries = dict.entries;
    budget_.charge(entries.size() * 8);
    if (style_.sort_keys) {
      std::ranges::stable_sort(
          entries, [&](const auto& a, const auto& b) { return compared(a.first, b.first, budget_).value_or(0) < 0; });
    }
    add_all(entries.size(), "{}", level, [&](std::size_t i) {
      add_key(entries[i].first);
      out_ += colon_;
      add(entries[i].second, level + 1);
    });
  }
  void add_key(const Value& key) {
    if (key.text() != nullptr) {
      add(*key.text());
      return;
    }
    expect(key.number().has_value() || key.is_none(), "tojson: a {} cannot be a key", key.type());
    append(out_, "\"");
    add(key, 0);
    append(out_, "\"");
  }
  void add(const Text& text) {
    budget_.charge(text.size());
    append(out_, "\"");
    for (const char32_t c : text) {
      add_character(c);
    }
    append(out_, "\"");
  }
  void add_character(char32_t c) {
    constexpr std::string_view kEscaped = "\"\\\n\r\t\f\b";
    constexpr std::string_view kLetters = "\"\\nrtfb";
    const auto point = static_cast<std::uint32_t>(code_point(c));
    const std::size_t found = point < 0x80 ? kEscaped.find(static_cast<char>(point)) : std::string_view::npos;
    if (found != std::string_view::npos) {
      append(out_, {"\\", 1}, c);
      append(out_, kLetters.substr(found, 1), c);
    } else if (point < 0x20 || (style_.ensure_ascii && point >= 0x7F && point <= 0xFFFF)) {
      append(out_, point == 0x7F ? "\x7f" : fmt::format("\\u{:04x}", point), c);
    } else if (style_.ensure_ascii && point > 0xFFFF) {
      const std::uint32_t above = point - 0x10000;
      append(out_, fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (above >> 10), 0xDC00 + (above & 0x3FF)), c);
    } else {
      out_.push_back(c);
    }
  }

  const JsonStyle& style_;
  Budget& budget_;
  Text comma_;
  Text colon_;
  Text out_;
};

}  // namespace

std::string float_repr(double value) {
  if (std::isnan(value) || std::isinf(value)) {
    return std::isnan(value) ? "nan" : value < 0 ? "-inf" : "inf";
  }
  std::array<char, 64> buffer{};
  const double size = std::abs(value);
  // Python writes an exponent below 1e-4 and from 1e16 on.
  const bool is_plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 is_plain ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer.data(), end.ptr);
  return is_plain && text.find('.') == std::string::npos ? text + ".0" : text;
}

Text repr(const Value& value, Budget& budget) {
  Printer printer(budget);
  printer.add(value);
  return printer.take();
}

Text to_str(const Value& value, Budget& budget) {
  if (const Text* const text = value.text()) {
    return *text;
  }
  return value.is_undefined() ? Text() : repr(value, budget);
}

Text to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  JsonPrinter printer(style, budget);
  printer.add(value, 0);
  return printer.take();
}

}  // namespace lockstep::jinja
