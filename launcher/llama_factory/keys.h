// The keys of a LLaMA-Factory file, as what translates them asks for them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace YAML {
class Node;
}

namespace lockstep::llama_factory {

// true and false, also as yes, no, on and off, in any case, as YAML 1.1 has them; nothing for another text.
[[nodiscard]] std::optional<bool> parse_flag(std::string text);

// The values of the file, each of which is asked for by name; what nobody asked for is unknown. Throws Error(kUsage)
// for a value that is not what is asked for.
class Keys {
 public:
  Keys(const YAML::Node& document, std::string origin);

  // Nothing where the key is missing or null. A scalar as it is written, a list with commas between.
  [[nodiscard]] std::optional<std::string> find(const std::string& key);
  // The same of a key that may hold anything, maps and what is in them included.
  [[nodiscard]] std::optional<std::string> find_anything(const std::string& key);
  [[nodiscard]] std::string text(const std::string& key, std::string otherwise) {
    return find(key).value_or(std::move(otherwise));
  }
  [[nodiscard]] double number(const std::string& key, double otherwise);
  [[nodiscard]] std::int64_t whole(const std::string& key, std::int64_t otherwise);
  [[nodiscard]] std::int64_t whole_from(std::int64_t least, const std::string& key, std::int64_t otherwise);
  [[nodiscard]] double number_from(double least, const std::string& key, double otherwise);
  [[nodiscard]] bool flag(const std::string& key, bool otherwise = false);
  [[nodiscard]] std::vector<std::string> list(const std::string& key);
  // For a key that asks for something else than `expected`.
  void refuse_unless(const std::string& key, const std::string& expected, const std::string& why);
  void refuse_unless_flag(const std::string& key, bool expected, const std::string& why);
  void check_all_known() const;
  [[nodiscard]] const std::string& origin() const { return origin_; }

 private:
  struct Value {
    std::string text;
    std::string problem;  // of who asks for a scalar or a list; empty: none
  };
  [[nodiscard]] static Value value_of(const YAML::Node& node);

  std::string origin_;
  std::map<std::string, Value> values_;
  std::set<std::string> asked_;
};

}  // namespace lockstep::llama_factory
