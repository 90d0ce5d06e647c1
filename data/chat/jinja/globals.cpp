#include "data/chat/jinja/globals.h"

#include <algorithm>
#include <array>

#include "data/chat/jinja/bound_arguments.h"

namespace lockstep::jinja {
namespace {

constexpr std::int64_t kMaxRange = 100'000;  // as jinja2's sandbox has it

Value range(const Arguments& arguments, Budget& budget) {
  const BoundArguments bound("range", arguments, {"start", "stop", "step"}, 1);
  const bool has_start = bound.has(1);
  const std::int64_t start = has_start ? bound.integer(0, 0) : 0;
  const std::int64_t stop = has_start ? bound.integer(1, 0) : bound.integer(0, 0);
  const std::int64_t step = bound.integer(2, 1);
  expect(step != 0, "range: the step is 0");
  Values items;
  for (std::int64_t i = start; step > 0 ? i < stop : i > stop;) {
    expect(items.size() < static_cast<std::size_t>(kMaxRange), "a range has more than {} numbers", kMaxRange);
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) {
      break;
    }
  }
  budget.charge(items.size() * 8);
  return Value::sequence(SequenceKind::kRange, std::move(items));
}

// dict() and namespace(): of a dict or of pairs, and of named arguments.
Entries entries_of(std::string_view function, const Arguments& arguments, Budget& budget) {
  expect(arguments.positional.size() <= 1, "{} is given {} arguments, expected at most 1", function,
         arguments.positional.size());
  Entries entries;
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional.front();
    if (from.dict() != nullptr) {
      entries = from.dict()->entries;
      budget.charge(entries.size() * 8);
    } else {
      for (const Value& pair : elements(from, budget)) {
        const Values both = elements(pair, budget);
        expect(both.size() == 2, "{} is given {} values for an entry, expected 2", function, both.size());
        put_entry(entries, both[0], both[1], budget);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) {
    put_entry(entries, Value::text(name), value, budget);
  }
  return entries;
}

Value make_namespace(const Arguments& arguments, const GlobalsOf& of) {
  const auto made = std::make_shared<Namespace>();
  for (const auto& [key, value] : entries_of("namespace", arguments, of.budget)) {
    expect(key.text() != nullptr, "a namespace is given a {} as a name", key.type());
    set_in_namespace(*made, to_utf8(*key.text()), value);
  }
  of.namespaces.push_back(made);
  return made;
}

Value raise_exception(const Arguments& arguments, Budget& budget) {
  const BoundArguments bound("raise_exception", arguments, {"message"}, 1);
  refuse("the template refuses: {}", to_utf8(to_str(bound[0], budget)));
}

Value strftime_now(const Arguments& arguments, std::time_t now) {
  const BoundArguments bound("strftime_now", arguments, {"format"}, 1);
  const std::string format = to_utf8(bound.text(0));
  expect(format.size() <= 200, "strftime_now: the format has {} bytes, expected at most 200", format.size());
  std::tm parts{};
  ::localtime_r(&now, &parts);
  std::array<char, 4096> text{};
  return Value::text({text.data(), std::strftime(text.data(), text.size(), format.c_str(), &parts)});
}

}  // namespace

std::map<std::string, Value, std::less<>> make_globals(const GlobalsOf& of) {
  std::map<std::string, Value, std::less<>> globals;
  const auto add = [&](const std::string& name, std::function<Value(const Arguments&)> function) {
    globals.emplace(name, std::make_shared<const Callable>(Callable{name, std::move(function)}));
  };
  add("range", [of](const Arguments& arguments) { return range(arguments, of.budget); });
  add("dict", [of](const Arguments& arguments) { return Value::dict(entries_of("dict", arguments, of.budget)); });
  add("namespace", [of](const Arguments& arguments) { return make_namespace(arguments, of); });
  add("raise_exception", [of](const Arguments& arguments) { return raise_exception(arguments, of.budget); });
  add("strftime_now", [of](const Arguments& arguments) { return strftime_now(arguments, of.now); });
  for (const char* name : {"lipsum", "cycler", "joiner"}) {
    add(name, [name](const Arguments&) -> Value { refuse("the function {} is not supported", name); });
  }
  return globals;
}

void set_in_namespace(Namespace& names, std::string_view name, const Value& value) {
  expect(!name.starts_with('_'), "{} is set in a namespace, expected a name without an underscore at its beginning",
         name);
  const auto found = std::ranges::find(names.entries, name, &std::pair<std::string, Value>::first);
  if (found != names.entries.end()) {
    found->second = value;
  } else {
    names.entries.emplace_back(name, value);
  }
}

void put_entry(Entries& entries, const Value& key, Value value, Budget& budget) {
  const bool is_tuple = key.sequence() != nullptr && key.sequence()->kind == SequenceKind::kTuple;
  expect(key.text() != nullptr || key.number().has_value() || key.is_none() || is_tuple, "a {} cannot be a key",
         key.type());
  const auto found = std::ranges::find_if(entries, [&](const auto& entry) { return equal(entry.first, key, budget); });
  if (found != entries.end()) {
    found->second = std::move(value);
  } else {
    entries.emplace_back(key, std::move(value));
  }
}

}  // namespace lockstep::jinja
