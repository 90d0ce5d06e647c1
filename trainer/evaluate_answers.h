// What a model answers in the conversations of a dataset, beside the answers that are there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "trainer/generate.h"
#include "trainer/load_model.h"
#include "trainer/text_scores.h"

namespace lockstep {

struct AnswerOptions {
  std::filesystem::path dataset;
  std::uint64_t max_samples = 0;  // the first conversations; 0: all
  // Conversation i draws with seed + i. Stop tokens are added: the model's ends of text, and what ends an answer in the
  // template that the dataset was packed with.
  GenerateOptions generate;
};

struct Answer {
  std::string prompt;  // as the model read it, markers included
  TextPair text;       // without special tokens
  bool is_finished = false;
};

// The last answer of each conversation, in their order, on every rank: the prompt is what stands before the last run of
// tokens that are trained on, the reference is that run. An answer ends with a stop token, or unfinished after
// max_tokens or where the model's context ends. Collective: conversations are spread over the ranks, and the answers
// are the same on any number of them. `progress`, which may be empty, is called with the conversations done, about, and
// their number.
//
// Throws AgreedError: kUsage for a dataset that does not hold conversations and for a prompt longer than the context,
// and what reading the dataset throws.
[[nodiscard]] std::vector<Answer> generate_answers(
    const LoadedModel& model, Arena& arena, Communicator& communicator, const AnswerOptions& options,
    const std::function<void(std::uint64_t done, std::uint64_t total)>& progress = {});

}  // namespace lockstep
