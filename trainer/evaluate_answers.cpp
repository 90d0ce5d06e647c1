#include "trainer/evaluate_answers.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include "base/error.h"
#include "data/chat/chat_encoder.h"
#include "data/dataset.h"
#include "trainer/agreement.h"

namespace lockstep {
namespace {

// Answers that each rank makes before the ranks meet: few, so that none waits for long.
constexpr std::uint64_t kAnswersPerRound = 8;

using Ids = std::vector<std::int32_t>;

// A conversation, up to its last answer.
struct Question {
  Ids prompt;
  Ids reference;
};

class Questions {
 public:
  Questions(const std::filesystem::path& folder, std::uint64_t most)
      : dataset_(Dataset::open(folder)), begins_(dataset_.document_offsets()) {
    require(dataset_.info().kind == DatasetKind::kChat, "{} holds {}; expected conversations to answer in",
            folder.string(), name_of(dataset_.info().kind));
    begins_.push_back(dataset_.info().tokens);
    count_ = begins_.size() - 1;
    require(count_ > 0, "{} holds no conversation", folder.string());
    count_ = most > 0 ? std::min(count_, most) : count_;
  }

  [[nodiscard]] const Dataset& dataset() const { return dataset_; }
  [[nodiscard]] std::uint64_t count() const { return count_; }

  [[nodiscard]] Question read(std::uint64_t index) {
    Ids ids(begins_[index + 1] - begins_[index]);
    std::vector<std::uint8_t> trained(ids.size());
    dataset_.read(begins_[index], ids);
    dataset_.read_trained(begins_[index], trained);
    const auto last = std::ranges::find(trained.rbegin(), trained.rend(), std::uint8_t{1});
    const auto before = std::ranges::find(last, trained.rend(), std::uint8_t{0});
    if (before == trained.rend()) {  // nothing trained, or from the first token on
      fail(ErrorCode::kCorrupt, "conversation {} of {} has no answer with something before it", index,
           dataset_.folder().string());
    }
    const auto begin = ids.begin() + (trained.rend() - before);
    const auto end = ids.begin() + (trained.rend() - last);
    return {Ids(ids.begin(), begin), Ids(begin, end)};
  }

 private:
  Dataset dataset_;
  std::vector<std::uint64_t> begins_;  // and the stream's end
  std::uint64_t count_ = 0;
};

// What the dataset's template ends an answer with.
std::optional<std::uint32_t> end_of_answer(const Dataset& dataset, const Tokenizer& tokenizer) {
  const std::string& name = dataset.info().chat_template;
  if (name.empty()) {
    return std::nullopt;
  }
  if (name != kOwnTemplateName) {
    return ChatEncoder(ChatTemplate::named(name), tokenizer, TrainedTurns::kAll).end_of_answer();
  }
  const std::optional<OwnTemplate> own = OwnTemplate::find(dataset.folder());
  require(own.has_value(), "{} has no chat template beside it, though it was packed with one",
          dataset.folder().string());
  return ChatEncoder(*own, tokenizer, TrainedTurns::kAll).end_of_answer();
}

enum class Specials { kShown, kLeftOut };

std::string text_of(const Tokenizer& tokenizer, std::span<const std::int32_t> ids, Specials specials) {
  std::vector<std::uint32_t> shown;
  for (const std::int32_t signed_id : ids) {
    const auto id = static_cast<std::uint32_t>(signed_id);
    if (tokenizer.has_token(id) && (specials == Specials::kShown || !tokenizer.is_special(id))) {
      shown.push_back(id);
    }
  }
  return tokenizer.decode(shown);
}

// As it goes from rank to rank: 1 where it is finished, how many tokens it has, and those.
struct Generated {
  bool is_finished = false;
  Ids ids;
};

void append(std::string& bytes, const Generated& answer) {
  Ids words = {answer.is_finished ? 1 : 0, static_cast<std::int32_t>(answer.ids.size())};
  words.insert(words.end(), answer.ids.begin(), answer.ids.end());
  bytes.append(reinterpret_cast<const char*>(words.data()), words.size() * sizeof(std::int32_t));
}

std::vector<Generated> answers_in(const std::string& bytes) {
  Ids words(bytes.size() / sizeof(std::int32_t));
  std::memcpy(words.data(), bytes.data(), bytes.size());
  std::vector<Generated> answers;
  for (auto word = words.begin(); word != words.end();) {
    const bool is_finished = *word++ == 1;
    const std::int32_t count = *word++;
    answers.push_back({is_finished, Ids(word, word + count)});
    word += count;
  }
  return answers;
}

class Answering {
 public:
  Answering(const LoadedModel& model, Arena& arena, const AnswerOptions& options)
      : model_(model),
        arena_(arena),
        generate_(options.generate),
        seed_(options.generate.sampling.seed),
        questions_(options.dataset, options.max_samples) {
    generate_.stop_tokens.insert(generate_.stop_tokens.end(), model.ends_of_text.begin(), model.ends_of_text.end());
    if (const auto end = end_of_answer(questions_.dataset(), model.tokenizer)) {
      generate_.stop_tokens.push_back(static_cast<std::int32_t>(*end));
    }
  }

  [[nodiscard]] std::uint64_t count() const { return questions_.count(); }

  [[nodiscard]] Generated answer(std::uint64_t index) {
    const Ids prompt = questions_.read(index).prompt;
    const std::int64_t context = model_.replica.model().architecture().context;
    const auto length = static_cast<std::int64_t>(prompt.size());
    require(length <= context, "conversation {} of {}: {} tokens stand before the answer, the model's context is {}",
            index, questions_.dataset().folder().string(), length, context);
    GenerateOptions options = generate_;
    options.max_tokens = std::min(options.max_tokens, context - length + 1);  // the last is not read any more
    options.sampling.seed = seed_ + index;
    Generated generated;
    generate(model_.replica, arena_, prompt, options, [&](std::int32_t token) {
      generated.ids.push_back(token);
      return true;
    });
    generated.is_finished = static_cast<std::int64_t>(generated.ids.size()) < options.max_tokens;
    return generated;
  }

  [[nodiscard]] Answer texts(std::uint64_t index, const Generated& generated) {
    const Question question = questions_.read(index);
    const Tokenizer& tokenizer = model_.tokenizer;
    return {.prompt = text_of(tokenizer, question.prompt, Specials::kShown),
            .text = {.prediction = text_of(tokenizer, generated.ids, Specials::kLeftOut),
                     .reference = text_of(tokenizer, question.reference, Specials::kLeftOut)},
            .is_finished = generated.is_finished};
  }

 private:
  const LoadedModel& model_;
  Arena& arena_;
  GenerateOptions generate_;
  std::uint64_t seed_;
  Questions questions_;
};

}  // namespace

// Round by round; in a round the ranks take conversations in turn.
std::vector<Answer> generate_answers(const LoadedModel& model, Arena& arena, Communicator& communicator,
                                     const AnswerOptions& options,
                                     const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  std::optional<Answering> answering;
  run_agreed(communicator, [&] { answering.emplace(model, arena, options); });
  const std::uint64_t count = answering->count();
  const auto world = static_cast<std::uint64_t>(communicator.world_size());
  const auto rank = static_cast<std::uint64_t>(communicator.rank());

  std::vector<Answer> answers;
  for (std::uint64_t begin = 0; begin < count; begin += kAnswersPerRound * world) {
    const std::uint64_t end = std::min(count, begin + kAnswersPerRound * world);
    std::string mine;
    run_agreed(communicator, [&] {
      for (std::uint64_t i = begin + rank; i < end; i += world) {
        append(mine, answering->answer(i));
        if (progress) {
          progress(std::min(end, i - rank + world), count);
        }
      }
    });
    std::vector<std::vector<Generated>> of_ranks;
    for (const std::string& bytes : communicator.all_gather_text(mine)) {
      of_ranks.push_back(answers_in(bytes));
    }
    run_agreed(communicator, [&] {
      for (std::uint64_t i = begin; i < end; ++i) {
        answers.push_back(answering->texts(i, of_ranks[(i - begin) % world][(i - begin) / world]));
      }
    });
  }
  return answers;
}

}  // namespace lockstep
