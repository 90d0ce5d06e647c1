// Values of the template language: Python's, as far as chat templates use them.
//
// Values are immutable and cheap to copy; a namespace alone changes. Not for several threads at once.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "data/chat/jinja/text.h"

namespace lockstep::jinja {

// What went wrong while a template ran; the interpreter adds the line and makes an Error of it.
struct Failure {
  std::string text;
  int line = 0;  // 0: not known yet
};

template <typename... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
void expect(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) {
    throw Failure{fmt::format(format, std::forward<Args>(args)...)};
  }
}

// What a template may use: each statement, expression, character and element that it makes is charged. So a hostile
// one ends with a Failure instead of taking all time or memory.
class Budget {
 public:
  void charge(std::size_t units) {
    expect(units <= left_, "the template takes more than {} steps", kUnits);
    left_ -= units;
  }
  // Looking for `needle` characters in `text` ones.
  void charge_search(std::size_t text, std::size_t needle) { charge(text * (1 + needle / 16)); }

 private:
  static constexpr std::size_t kUnits = std::size_t{1} << 26;
  std::size_t left_ = kUnits;
};

class Value;
using Values = std::vector<Value>;
using Entries = std::vector<std::pair<Value, Value>>;

enum class SequenceKind : std::uint8_t { kList, kTuple, kRange, kKeys, kValues, kItems, kGenerator };

struct Sequence {
  SequenceKind kind = SequenceKind::kList;
  Values items;
  int depth = 1;                 // of sequences and dicts in it, itself included
  mutable std::size_t used = 0;  // of a generator: items that were taken from it
};

struct Dict {
  Entries entries;  // in the order they were made, each key once
  int depth = 1;

  [[nodiscard]] const Value* find(const Value& key) const;
  [[nodiscard]] const Value* find(std::string_view key) const;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> entries;
};

// `loop` in the body of a for.
struct Loop {
  std::shared_ptr<const Values> items;
  std::size_t index = 0;
  int depth = 1;  // loops around it, itself included
};

struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Callable {
  std::string name;
  std::function<Value(const Arguments&)> call;
};

struct None {
  friend bool operator==(None, None) = default;
};
struct Undefined {
  std::string what;  // "messages is undefined"
  friend bool operator==(const Undefined&, const Undefined&) { return true; }
};

class Value {
 public:
  Value() : data_(None{}) {}
  // NOLINTBEGIN(google-explicit-constructor): these are the values of the language
  Value(bool value) : data_(value) {}
  Value(std::int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(Text value) : data_(std::make_shared<const Text>(std::move(value))) {}
  Value(Undefined value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Sequence> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Dict> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<Namespace> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Loop> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Callable> value) : data_(std::move(value)) {}
  // NOLINTEND(google-explicit-constructor)
  // Texts are made by text(), numbers as the types above: nothing else turns into a value by itself.
  template <typename T>
  Value(T) = delete;

  // UTF-8, said by `speaker` (text.h).
  [[nodiscard]] static Value text(std::string_view utf8, unsigned speaker = 0) { return to_text(utf8, speaker); }
  [[nodiscard]] static Value undefined(std::string what) { return Undefined{std::move(what)}; }
  // Throw Failure where a value would be nested too deep.
  [[nodiscard]] static Value sequence(SequenceKind kind, Values items);
  [[nodiscard]] static Value list(Values items) { return sequence(SequenceKind::kList, std::move(items)); }
  [[nodiscard]] static Value dict(Entries entries);
  // {"name": value, ...}; the names differ.
  [[nodiscard]] static Value record(std::vector<std::pair<std::string_view, Value>> entries);
  // A document of JSON. Throws Error(kCorrupt) that begins with `name`.
  [[nodiscard]] static Value from_json(std::string_view json, std::string_view name);

  template <typename T>
  [[nodiscard]] const T* get_if() const {
    return std::get_if<T>(&data_);
  }
  [[nodiscard]] bool is_none() const { return get_if<None>() != nullptr; }
  [[nodiscard]] bool is_undefined() const { return get_if<Undefined>() != nullptr; }
  [[nodiscard]] bool is_bool() const { return get_if<bool>() != nullptr; }
  // Null where the value is something else.
  [[nodiscard]] const Text* text() const { return pointed<const Text>(); }
  [[nodiscard]] const Sequence* sequence() const { return pointed<const Sequence>(); }
  [[nodiscard]] const Dict* dict() const { return pointed<const Dict>(); }
  [[nodiscard]] Namespace* name_space() const { return pointed<Namespace>(); }
  [[nodiscard]] const Loop* loop() const { return pointed<const Loop>(); }
  [[nodiscard]] const Callable* callable() const { return pointed<const Callable>(); }
  // Of an integer or a truth value, as Python counts with them.
  [[nodiscard]] std::optional<std::int64_t> integer() const;
  // Of these and of a float.
  [[nodiscard]] std::optional<double> number() const;

  [[nodiscard]] bool truth() const;
  [[nodiscard]] int depth() const;
  // Python's name of the type: "str".
  [[nodiscard]] std::string_view type() const;
  // One and the same object.
  [[nodiscard]] bool is(const Value& other) const { return data_ == other.data_; }

 private:
  template <typename T>
  [[nodiscard]] T* pointed() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&data_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  std::variant<None, Undefined, bool, std::int64_t, double, std::shared_ptr<const Text>,
               std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
               std::shared_ptr<const Loop>, std::shared_ptr<const Callable>>
      data_;
};

// Python's ==.
[[nodiscard]] bool equal(const Value& a, const Value& b, Budget& budget);
// Below, at or above 0. Throws Failure for values that Python does not order; nothing for not-a-number.
[[nodiscard]] std::optional<int> compared(const Value& a, const Value& b, Budget& budget);

// What iterating over the value gives: characters, elements, keys. Throws Failure for one that has none. A generator
// gives what is left of it, once.
[[nodiscard]] Values elements(const Value& value, Budget& budget);
// Characters, elements or entries; nothing where Python has no len().
[[nodiscard]] std::optional<std::size_t> length(const Value& value);

// Python's str() and repr().
[[nodiscard]] Text to_str(const Value& value, Budget& budget);
[[nodiscard]] Text repr(const Value& value, Budget& budget);

struct JsonStyle {
  std::optional<Text> indent;  // of one level; nothing: all on one line
  std::optional<std::pair<Text, Text>> separators;
  bool ensure_ascii = false;
  bool sort_keys = false;
};
// Python's json.dumps().
[[nodiscard]] Text to_json(const Value& value, const JsonStyle& style, Budget& budget);

// As Python prints a float.
[[nodiscard]] std::string float_repr(double value);

}  // namespace lockstep::jinja
