#include "data/chat/jinja/value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace lockstep::jinja {
namespace {

constexpr int kMaxDepth = 200;  // of values in values: everything that walks them recurses

using Json = nlohmann::ordered_json;

Value from(const Json& json, int depth) {
  expect(depth < kMaxDepth, "values are nested more than {} deep", kMaxDepth);
  switch (json.type()) {
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
      return json.get<std::int64_t>();
    case Json::value_t::number_unsigned:
      expect(json.get<std::uint64_t>() <= INT64_MAX, "the number {} does not fit", json.dump());
      return json.get<std::int64_t>();
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string:
      return Value::text(json.get_ref<const std::string&>());
    case Json::value_t::array: {
      Values items;
      for (const Json& item : json) {
        items.push_back(from(item, depth + 1));
      }
      return Value::list(std::move(items));
    }
    case Json::value_t::object: {
      Entries entries;
      for (const auto& [key, value] : json.items()) {
        entries.emplace_back(Value::text(key), from(value, depth + 1));
      }
      return Value::dict(std::move(entries));
    }
    default:
      return {};
  }
}

bool equal_items(const Values& a, const Values& b, Budget& budget) {
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(), [&](const Value& x, const Value& y) { return equal(x, y, budget); });
}

bool equal_dicts(const Dict& a, const Dict& b, Budget& budget) {
  budget.charge(a.entries.size() * b.entries.size());
  return a.entries.size() == b.entries.size() && std::ranges::all_of(a.entries, [&](const auto& entry) {
           const Value* const other = b.find(entry.first);
           return other != nullptr && equal(entry.second, *other, budget);
         });
}

// Lists equal lists, tuples tuples; a view or a generator is equal to itself alone.
bool is_list_like(SequenceKind kind) {
  return kind == SequenceKind::kList || kind == SequenceKind::kTuple || kind == SequenceKind::kRange;
}

int sign_of(const auto& a, const auto& b) { return a < b ? -1 : a == b ? 0 : 1; }

}  // namespace

// Keys are texts, numbers, none or tuples of these; a search must not fail, so what else there is matches itself.
const Value* Dict::find(const Value& key) const {
  Budget own;
  const auto found = std::ranges::find_if(entries, [&](const auto& entry) { return equal(entry.first, key, own); });
  return found == entries.end() ? nullptr : &found->second;
}

const Value* Dict::find(std::string_view key) const { return find(Value::text(key)); }

Value Value::sequence(SequenceKind kind, Values items) {
  Sequence made{kind, std::move(items)};
  for (const Value& item : made.items) {
    made.depth = std::max(made.depth, item.depth() + 1);
  }
  expect(made.depth <= kMaxDepth, "values are nested more than {} deep", kMaxDepth);
  return std::make_shared<const Sequence>(std::move(made));
}

Value Value::dict(Entries entries) {
  Dict made{std::move(entries)};
  for (const auto& [key, value] : made.entries) {
    made.depth = std::max({made.depth, key.depth() + 1, value.depth() + 1});
  }
  expect(made.depth <= kMaxDepth, "values are nested more than {} deep", kMaxDepth);
  return std::make_shared<const Dict>(std::move(made));
}

Value Value::record(std::vector<std::pair<std::string_view, Value>> entries) {
  Entries made;
  for (auto& [name, value] : entries) {
    made.emplace_back(text(name), std::move(value));
  }
  return dict(std::move(made));
}

Value Value::from_json(std::string_view json, std::string_view name) {
  const auto refuse_deep = [&](int depth, Json::parse_event_t, Json&) {
    if (depth >= kMaxDepth) {
      fail(ErrorCode::kCorrupt, "{}: nested more than {} deep", name, kMaxDepth);
    }
    return true;
  };
  try {
    return from(Json::parse(json, refuse_deep), 0);
  } catch (const Json::parse_error& error) {
    fail(ErrorCode::kCorrupt, "{}: not valid JSON at byte {}", name, error.byte);
  } catch (const Json::out_of_range&) {
    fail(ErrorCode::kCorrupt, "{}: not valid JSON: a number is out of range", name);
  } catch (const Failure& failure) {
    fail(ErrorCode::kCorrupt, "{}: {}", name, failure.text);
  }
}

std::optional<std::int64_t> Value::integer() const {
  if (const bool* const flag = get_if<bool>()) {
    return *flag ? 1 : 0;
  }
  const auto* const number = get_if<std::int64_t>();
  return number == nullptr ? std::nullopt : std::optional(*number);
}

std::optional<double> Value::number() const {
  if (const auto whole = integer()) {
    return static_cast<double>(*whole);
  }
  const double* const number = get_if<double>();
  return number == nullptr ? std::nullopt : std::optional(*number);
}

bool Value::truth() const {
  if (is_none() || is_undefined()) {
    return false;
  }
  if (const auto value = number()) {
    return *value != 0;
  }
  if (sequence() != nullptr && sequence()->kind == SequenceKind::kGenerator) {
    return true;
  }
  return length(*this).value_or(1) > 0;
}

int Value::depth() const { return sequence() != nullptr ? sequence()->depth : dict() != nullptr ? dict()->depth : 0; }

std::string_view Value::type() const {
  if (const Sequence* const items = sequence()) {
    constexpr std::string_view kNames[] = {"list",        "tuple",      "range",    "dict_keys",
                                           "dict_values", "dict_items", "generator"};
    return kNames[static_cast<std::size_t>(items->kind)];
  }
  constexpr std::string_view kNames[] = {"NoneType", "Undefined", "bool",      "int",         "float",   "str",
                                         "",         "dict",      "Namespace", "LoopContext", "function"};
  return kNames[data_.index()];
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.charge(1);
  if (const auto x = a.integer(), y = b.integer(); x && y) {
    return *x == *y;
  }
  if (const auto x = a.number(), y = b.number(); x && y) {
    return *x == *y;
  }
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.charge(std::min(a.text()->size(), b.text()->size()) / 4);
    return *a.text() == *b.text();
  }
  if (a.sequence() != nullptr && b.sequence() != nullptr && a.sequence() != b.sequence()) {
    return a.sequence()->kind == b.sequence()->kind && is_list_like(a.sequence()->kind) &&
           equal_items(a.sequence()->items, b.sequence()->items, budget);
  }
  if (a.dict() != nullptr && b.dict() != nullptr) {
    return equal_dicts(*a.dict(), *b.dict(), budget);
  }
  return a.is(b);
}

std::optional<int> compared(const Value& a, const Value& b, Budget& budget) {
  budget.charge(1);
  if (const auto x = a.integer(), y = b.integer(); x && y) {
    return sign_of(*x, *y);
  }
  if (const auto x = a.number(), y = b.number(); x && y) {
    return std::isnan(*x) || std::isnan(*y) ? std::nullopt : std::optional(sign_of(*x, *y));
  }
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.charge(std::min(a.text()->size(), b.text()->size()) / 4);
    return a.text()->compare(*b.text());
  }
  const Sequence* const x = a.sequence();
  const Sequence* const y = b.sequence();
  if (x != nullptr && y != nullptr && x->kind == y->kind && x->kind <= SequenceKind::kTuple) {
    for (std::size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i) {
      if (!equal(x->items[i], y->items[i], budget)) {
        return compared(x->items[i], y->items[i], budget);
      }
    }
    return sign_of(x->items.size(), y->items.size());
  }
  for (const Value* value : {&a, &b}) {
    expect(!value->is_undefined(), "{}", value->is_undefined() ? value->get_if<Undefined>()->what : std::string());
  }
  refuse("'{}' and '{}' have no order", a.type(), b.type());
}

Values elements(const Value& value, Budget& budget) {
  if (const Text* const text = value.text()) {
    budget.charge(text->size() * 8);
    Values items;
    items.reserve(text->size());
    for (const char32_t c : *text) {
      items.emplace_back(Text(1, c));
    }
    return items;
  }
  if (const Sequence* const sequence = value.sequence()) {
    budget.charge(sequence->items.size() * 8);
    const std::size_t from = std::exchange(
        sequence->used, sequence->kind == SequenceKind::kGenerator ? sequence->items.size() : sequence->used);
    return Values(sequence->items.begin() + static_cast<std::ptrdiff_t>(from), sequence->items.end());
  }
  if (const Dict* const dict = value.dict()) {
    budget.charge(dict->entries.size() * 8);
    Values keys;
    for (const auto& entry : dict->entries) {
      keys.push_back(entry.first);
    }
    return keys;
  }
  if (const Loop* const loop = value.loop()) {
    budget.charge(loop->items->size() * 8);
    return *loop->items;
  }
  expect(value.is_undefined(), "'{}' cannot be iterated over", value.type());
  return {};
}

std::optional<std::size_t> length(const Value& value) {
  if (const Text* const text = value.text()) {
    return text->size();
  }
  if (const Sequence* const sequence = value.sequence(); sequence && sequence->kind != SequenceKind::kGenerator) {
    return sequence->items.size();
  }
  if (const Dict* const dict = value.dict()) {
    return dict->entries.size();
  }
  if (const Loop* const loop = value.loop()) {
    return loop->items->size();
  }
  return value.is_undefined() ? std::optional<std::size_t>(0) : std::nullopt;
}

}  // namespace lockstep::jinja
