// What becomes of a LLaMA-Factory file, part by part: the model in translation_model.cpp, what is trained of it and to
// what end in translation_tuning.cpp, datasets in translation_data.cpp, the training in translation_training.cpp.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "data/pack/pack.h"
#include "launcher/llama_factory/keys.h"
#include "launcher/llama_factory/llama_factory.h"

namespace lockstep::llama_factory {

class Translation {
 public:
  Translation(Keys keys, int world, std::string resume)
      : keys_(std::move(keys)), world_(std::max(1, world)), resume_(std::move(resume)) {}

  LlamaFactoryJob run();

 private:
  [[nodiscard]] const std::string& origin() const { return keys_.origin(); }

  template <typename T>
  void set(const std::string& key, const char* setting, const T& value) {
    job_.settings.push_back(fmt::format("{}={}", setting, value));
    const auto written = keys_.find(key);
    note(fmt::format("{}: {} -> {}", key, written.value_or("(default)"), job_.settings.back()));
  }
  void note(std::string line) { job_.notes.push_back(std::move(line)); }

  void take_model();
  void take_quantization();

  void take_tuning();
  void take_preference();

  void take_data();
  // One dataset of conversations, from the entries of `names`.
  PackOptions chats(const std::vector<std::string>& names, const std::filesystem::path& out);
  // Of texts: files of JSON lines, or plain ones.
  PackOptions texts(const std::vector<std::string>& names, const std::filesystem::path& out);
  PackOptions packed(const std::vector<std::string>& names, const std::filesystem::path& out);
  void finish(PackOptions& pack, const std::filesystem::path& out);
  // 0: all.
  [[nodiscard]] std::uint64_t most_samples();
  [[nodiscard]] std::int64_t sequence();

  void take_output();
  void take_best();
  void take_batch();
  void take_optimizer();
  void take_evaluation();

  void take_internals();

  Keys keys_;
  int world_;
  std::string resume_;
  std::string stage_;
  std::filesystem::path folder_;  // of the model
  std::filesystem::path out_;
  std::int64_t context_ = 0;
  bool has_valid_ = false;
  LlamaFactoryJob job_;
};

}  // namespace lockstep::llama_factory
