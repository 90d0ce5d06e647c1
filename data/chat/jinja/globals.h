// The functions that every template has.
#pragma once

#include <ctime>
#include <map>
#include <string>
#include <string_view>

#include "data/chat/jinja/value.h"

namespace lockstep::jinja {

struct GlobalsOf {
  std::time_t now;  // for strftime_now()
  Budget& budget;
  std::vector<std::shared_ptr<Namespace>>& namespaces;  // where namespace() leaves what it makes
};
// range, namespace, dict, raise_exception, strftime_now. What is referred to must outlive them.
[[nodiscard]] std::map<std::string, Value, std::less<>> make_globals(const GlobalsOf& of);

// Throws Failure for a name that begins with an underscore.
void set_in_namespace(Namespace& names, std::string_view name, const Value& value);

// Adds an entry, or gives the key another value. Throws Failure for a key that cannot be one.
void put_entry(Entries& entries, const Value& key, Value value, Budget& budget);

}  // namespace lockstep::jinja
