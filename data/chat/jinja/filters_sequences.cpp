// Filters of lists, dicts and whatever else has elements.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "data/chat/jinja/filters.h"
#include "data/chat/jinja/filters_impl.h"
#include "data/chat/jinja/operators.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

Value generator(Values items) { return Value::sequence(SequenceKind::kGenerator, std::move(items)); }

// What a value is sorted by: its attribute, letters in lower case unless that matters.
struct SortKey {
  const Value* attribute = nullptr;  // null: the value itself
  bool case_sensitive = false;
  Budget& budget;

  [[nodiscard]] Value of(const Value& value) const {
    Value key = attribute == nullptr ? value : attribute_path(value, *attribute, budget);
    if (!case_sensitive && key.text() != nullptr) {
      budget.charge(key.text()->size());
      return lower(*key.text());
    }
    return key;
  }
};

Values sorted(Values items, const SortKey& key, bool descending) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    Value by = key.of(item);
    keyed.emplace_back(std::move(by), std::move(item));
  }
  key.budget.charge(items.size() * 8);
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    const int order = compared(a.first, b.first, key.budget).value_or(0);
    return descending ? order > 0 : order < 0;
  });
  for (std::size_t i = 0; i < items.size(); ++i) {
    items[i] = std::move(keyed[i].second);
  }
  return items;
}

Value length_filter(const Use& use) {
  static_cast<void>(use.bound({"obj"}, 1));
  const auto size = length(use.value());
  expect(size.has_value(), "a {} has no length", use.value().type());
  return static_cast<std::int64_t>(*size);
}

Value first(const Use& use) {
  static_cast<void>(use.bound({"seq"}, 1));
  const Sequence* const sequence = use.value().sequence();
  if (sequence != nullptr && sequence->kind == SequenceKind::kGenerator && sequence->used < sequence->items.size()) {
    return sequence->items[sequence->used++];
  }
  const Values items = use.items();
  return items.empty() ? Value::undefined("there is no first item, the sequence is empty") : items.front();
}

Value last(const Use& use) {
  static_cast<void>(use.bound({"seq"}, 1));
  const Values items = use.items();
  return items.empty() ? Value::undefined("there is no last item, the sequence is empty") : items.back();
}

Value list(const Use& use) {
  static_cast<void>(use.bound({"value"}, 1));
  return Value::list(use.items());
}

Value reverse(const Use& use) {
  static_cast<void>(use.bound({"value"}, 1));
  if (use.value().text() != nullptr) {
    Text text = use.text();
    std::ranges::reverse(text);
    return text;
  }
  Values items = use.items();
  std::ranges::reverse(items);
  return generator(std::move(items));
}

Value items_filter(const Use& use) {
  static_cast<void>(use.bound({"value"}, 1));
  expect(use.value().dict() != nullptr || use.value().is_undefined(), "items of a {}, expected a dict",
         use.value().type());
  Values items;
  if (const Dict* const dict = use.value().dict()) {
    use.budget.charge(dict->entries.size() * 8);
    for (const auto& [key, value] : dict->entries) {
      items.push_back(Value::sequence(SequenceKind::kTuple, {key, value}));
    }
  }
  return generator(std::move(items));
}

Value dict_sort(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "case_sensitive", "by", "reverse"}, 1);
  const std::string by = arguments.has(2) ? to_utf8(arguments.text(2)) : "key";
  expect(by == "key" || by == "value", "dictsort by {}, expected key or value", in_quotes(by));
  const Value pairs = items_filter({use.name, {{use.value()}, {}}, use.budget});
  const Value place = std::int64_t{by == "key" ? 0 : 1};
  return Value::list(
      sorted(elements(pairs, use.budget), {&place, arguments.flag(1, false), use.budget}, arguments.flag(3, false)));
}

Value sort(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "reverse", "case_sensitive", "attribute"}, 1);
  return Value::list(
      sorted(use.items(), {if_given(arguments, 3), arguments.flag(2, false), use.budget}, arguments.flag(1, false)));
}

Value unique(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "case_sensitive", "attribute"}, 1);
  const SortKey key{if_given(arguments, 2), arguments.flag(1, false), use.budget};
  Values seen;
  Values items;
  for (const Value& item : use.items()) {
    const Value by = key.of(item);
    if (std::ranges::none_of(seen, [&](const Value& other) { return equal(other, by, use.budget); })) {
      seen.push_back(by);
      items.push_back(item);
    }
  }
  return generator(std::move(items));
}

Value extreme(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "case_sensitive", "attribute"}, 1);
  const SortKey key{if_given(arguments, 2), arguments.flag(1, false), use.budget};
  const Values items = use.items();
  if (items.empty()) {
    return Value::undefined("there is no item, the sequence is empty");
  }
  const Value* best = &items.front();
  for (const Value& item : items) {
    const int order = compared(key.of(item), key.of(*best), use.budget).value_or(0);
    best = (use.name == "min" ? order < 0 : order > 0) ? &item : best;
  }
  return *best;
}

Value sum(const Use& use) {
  const BoundArguments arguments = use.bound({"iterable", "attribute", "start"}, 1);
  const Value* const attribute = if_given(arguments, 1);
  Value total = arguments.get(2, std::int64_t{0});
  for (const Value& item : use.items()) {
    total = binary("+", total, attribute == nullptr ? item : attribute_path(item, *attribute, use.budget), use.budget);
  }
  return total;
}

// The name at `place` among the positional arguments, and the arguments behind it, with room for a value before them.
std::pair<std::string, Arguments> inner_use(const Use& use, std::size_t place) {
  const Values& given = use.arguments.positional;
  expect(given.size() > place && given[place].text() != nullptr, "{} needs a name", use.name);
  Arguments inner;
  inner.positional.emplace_back();
  inner.positional.insert(inner.positional.end(), given.begin() + static_cast<std::ptrdiff_t>(place) + 1, given.end());
  inner.named = use.arguments.named;
  return {to_utf8(*given[place].text()), std::move(inner)};
}

Value map(const Use& use) {
  Values items = use.items_if_true();
  if (use.arguments.positional.size() == 1 && !use.arguments.named.empty()) {
    const BoundArguments arguments = use.bound({"value", "attribute", "default"}, 1);
    expect(arguments.has(1), "map: the argument attribute is missing");
    for (Value& item : items) {
      item = attribute_path(item, arguments[1], use.budget);
      if (item.is_undefined() && if_given(arguments, 2) != nullptr) {
        item = arguments[2];
      }
    }
    return generator(std::move(items));
  }
  auto [name, inner] = inner_use(use, 1);
  for (Value& item : items) {
    inner.positional.front() = item;
    item = apply_filter(name, inner, use.budget);
  }
  return generator(std::move(items));
}

// select, reject, selectattr, rejectattr: by a test, or by being true.
Value select(const Use& use) {
  const bool by_attribute = use.name.ends_with("attr");
  const bool wanted = use.name.starts_with("select");
  const Values& given = use.arguments.positional;
  expect(!by_attribute || given.size() > 1, "{}: the attribute is missing", use.name);
  const std::size_t place = by_attribute ? 2 : 1;
  const bool has_test = given.size() > place;
  auto [name, inner] = has_test ? inner_use(use, place) : std::pair<std::string, Arguments>();
  Values items;
  for (const Value& item : use.items_if_true()) {
    const Value value = by_attribute ? attribute_path(item, given[1], use.budget) : item;
    if (has_test) {
      inner.positional.front() = value;
    }
    if ((has_test ? apply_test(name, inner, use.budget) : value.truth()) == wanted) {
      items.push_back(item);
    }
  }
  return generator(std::move(items));
}

}  // namespace

Filters sequence_filters() {
  return {{"length", length_filter},
          {"count", length_filter},
          {"first", first},
          {"last", last},
          {"list", list},
          {"reverse", reverse},
          {"items", items_filter},
          {"dictsort", dict_sort},
          {"sort", sort},
          {"unique", unique},
          {"min", extreme},
          {"max", extreme},
          {"sum", sum},
          {"map", map},
          {"select", select},
          {"reject", select},
          {"selectattr", select},
          {"rejectattr", select}};
}

}  // namespace lockstep::jinja
