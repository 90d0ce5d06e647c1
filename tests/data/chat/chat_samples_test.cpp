// Conversations from JSON to the rows of batches.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/batch_loader.h"
#include "data/samples.h"
#include "tests/data/pack/pack_fixture.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

class ChatSamplesTest : public PackTest {
 protected:
  ChatSamplesTest() {
    options_.format = PackFormat::kChat;
    options_.chat_template = "default";
    options_.tokenizer = "bytes";
    options_.split = {1};
  }

  // Conversation i: "Human: qqq$\nAssistant:aaa$\n" with i + 1 times q and a, which is 22 + 2 (i + 1) + 2 tokens long.
  void pack_conversations(int count) {
    std::string text = "[";
    for (int i = 0; i < count; ++i) {
      text += (i == 0 ? "" : ",\n") + std::string(R"({"instruction": ")") + std::string(i + 1, 'q') +
              R"(", "output": ")" + std::string(i + 1, 'a') + "\"}";
    }
    write_input("chats.json", text + "]");
    pack(options_, {}, {});
  }
  [[nodiscard]] std::filesystem::path train() const { return options_.out / "train"; }

  [[nodiscard]] BatchLoaderOptions loader_options(int rank, int world) const {
    BatchLoaderOptions options;
    options.dataset = train();
    options.sequence = 64;
    options.micro_batches = 4;
    options.micro_batch_size = 2;
    options.seed = 3;
    options.rank = rank;
    options.world = world;
    return options;
  }
};

constexpr std::int64_t kAround = 21;  // tokens of "Human: ", the end, "\nAssistant:", the end, "\n"

TEST_F(ChatSamplesTest, KeepWhichTokensAreTrainedOn) {
  pack_conversations(3);
  Dataset dataset = Dataset::open(train());
  EXPECT_EQ(dataset.info().kind, DatasetKind::kChat);
  EXPECT_EQ(dataset.info().chat_template, "default");
  EXPECT_EQ(dataset.info().documents, 3U);
  EXPECT_THAT(dataset.document_targets(), testing::ElementsAre(2, 3, 4));  // an answer and what ends it

  Samples samples(dataset, 64, false);
  ASSERT_EQ(samples.count(), 3U);
  EXPECT_EQ(samples.inputs(1), kAround + 4 - 1);
  EXPECT_EQ(samples.targets(1), 3);
  std::vector<std::int32_t> inputs(64, 7);
  std::vector<std::int32_t> targets(64, 7);
  static_cast<void>(samples.read(1, inputs, targets));
  const std::string text = "Human: qq\xFF\nAssistant:aa\xFF\n";
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    const auto id_of = [](char c) { return c == '\xFF' ? 256 : static_cast<std::int32_t>(c); };
    EXPECT_EQ(inputs[i], id_of(text[i])) << i;
    const bool is_answer = i + 1 >= text.size() - 4 && i + 1 < text.size() - 1;
    EXPECT_EQ(targets[i], is_answer ? id_of(text[i + 1]) : -1) << i;
  }
  EXPECT_EQ(inputs[text.size() - 1], 7);
}

TEST_F(ChatSamplesTest, FillRowsAndKnowTheStepsTargets) {
  pack_conversations(40);
  std::map<std::uint64_t, std::int64_t> targets_of_steps;
  std::map<std::pair<std::uint64_t, std::int64_t>, std::vector<std::int32_t>> alone;
  {
    BatchLoaderOptions wide = loader_options(0, 1);
    wide.sequence = 128;
    BatchLoader loader(wide);
    for (int i = 0; i < 40; ++i) {
      const TokenBatch& batch = loader.next();
      EXPECT_EQ(batch.row_tokens % 16, 0);
      EXPECT_EQ(batch.rows(), 1);
      EXPECT_EQ(std::accumulate(batch.lengths.begin(), batch.lengths.end(), std::int64_t{0}), batch.row_tokens);
      EXPECT_EQ(std::count_if(batch.targets.begin(), batch.targets.end(), [](std::int32_t t) { return t >= 0; }),
                batch.target_tokens);
      targets_of_steps[batch.step] += batch.target_tokens;
      alone[{batch.step, batch.micro_batch}] = batch.targets;
      // Both conversations, and what fills the row up.
      const std::int64_t inputs = batch.lengths.at(0) + batch.lengths.at(1);
      EXPECT_EQ(std::ranges::count_if(batch.inputs, [](auto id) { return id > 0; }), inputs);
      EXPECT_GT(inputs, batch.row_tokens - 16);
      EXPECT_EQ(batch.lengths.size(), inputs == batch.row_tokens ? 2U : 3U);
    }
  }
  for (int rank = 0; rank < 2; ++rank) {
    BatchLoaderOptions part = loader_options(rank, 2);
    part.sequence = 128;
    BatchLoader loader(part);
    for (int i = 0; i < 20; ++i) {
      const TokenBatch& batch = loader.next();
      EXPECT_EQ(batch.step_targets, targets_of_steps[batch.step]);
      EXPECT_EQ(batch.targets, (alone[{batch.step, batch.micro_batch}]));
    }
  }
}

// Inputs of 22, 24, 26, ... 40: the best fit in decreasing order into 64.
TEST_F(ChatSamplesTest, PackedHoldSeveralConversations) {
  pack_conversations(10);
  Dataset dataset = Dataset::open(train());
  Samples alone(dataset, 64, false);
  Samples samples(dataset, 64, true);
  ASSERT_EQ(alone.count(), 10U);
  ASSERT_EQ(samples.count(), 5U);
  EXPECT_EQ(alone.inputs(9), 40);
  std::vector<std::vector<std::int64_t>> lengths;
  for (std::uint64_t sample = 0; sample < samples.count(); ++sample) {
    samples.append_lengths(sample, lengths.emplace_back());
    EXPECT_EQ(samples.inputs(sample), std::accumulate(lengths.back().begin(), lengths.back().end(), std::int64_t{0}));
  }
  EXPECT_EQ(lengths, (std::vector<std::vector<std::int64_t>>{{40, 24}, {38, 26}, {36, 28}, {34, 30}, {32, 22}}));

  std::vector<std::int32_t> inputs(64, 7);
  std::vector<std::int32_t> targets(64, 7);
  EXPECT_EQ(samples.targets(4), alone.targets(5) + alone.targets(0));
  static_cast<void>(samples.read(4, inputs, targets));
  std::vector<std::int32_t> expected_inputs(64, 7);
  std::vector<std::int32_t> expected_targets(64, 7);
  static_cast<void>(alone.read(5, std::span(expected_inputs).first(32), std::span(expected_targets).first(32)));
  static_cast<void>(
      alone.read(0, std::span(expected_inputs).subspan(32, 22), std::span(expected_targets).subspan(32, 22)));
  EXPECT_EQ(inputs, expected_inputs);
  EXPECT_EQ(targets, expected_targets);
}

TEST_F(ChatSamplesTest, PackedAreAllReadOnceAnEpoch) {
  pack_conversations(40);
  BatchLoaderOptions packed = loader_options(0, 1);
  packed.sequence = 128;
  packed.packed = true;
  packed.micro_batch_size = 1;
  packed.micro_batches = 1;
  Dataset dataset = Dataset::open(train());
  const Samples samples(dataset, 128, true);
  EXPECT_EQ(samples.count(), 20U);
  std::multiset<std::int64_t> found;
  BatchLoader loader(packed);
  for (std::uint64_t i = 0; i < samples.count(); ++i) {
    const TokenBatch& batch = loader.next();
    EXPECT_LE(batch.row_tokens, 128);
    EXPECT_EQ(batch.step_inputs, std::ranges::count_if(batch.inputs, [](auto id) { return id > 0; }));
    const bool is_filled = batch.step_inputs < batch.row_tokens;
    found.insert(batch.lengths.begin(), batch.lengths.end() - (is_filled ? 1 : 0));
  }
  std::multiset<std::int64_t> expected;
  for (std::int64_t i = 0; i < 40; ++i) {
    expected.insert(kAround + 1 + 2 * i);
  }
  EXPECT_EQ(found, expected);
}

TEST_F(ChatSamplesTest, OfPairsKeepBothAnswersTogether) {
  options_.format = PackFormat::kPairs;
  options_.max_tokens = 40;
  write_input("pairs.json", R"([{"instruction": "q", "chosen": "aa", "rejected": "b"},
                                {"instruction": "q", "chosen": "aaaa", "rejected": "bbbbbbbbbbbbbbbbbbbbbbbbbbb"},
                                {"instruction": "qqqqqqqqqqqqqqqqqqqqqqqqqqqqq", "chosen": "a", "rejected": "b"}])");
  std::vector<std::string> messages;
  PackHooks hooks;
  hooks.message = [&](const std::string& line) { messages.push_back(line); };
  const PackResult result = pack(options_, {}, hooks);
  EXPECT_EQ(result.splits.front().contents(), "2 pairs");
  EXPECT_THAT(messages, testing::ElementsAre("too long: 1 cut to 40 tokens, 1 left out"));

  Dataset dataset = Dataset::open(train());
  EXPECT_EQ(dataset.info().kind, DatasetKind::kPairs);
  EXPECT_EQ(dataset.info().documents, 4U);
  Samples samples(dataset, 64, false);
  ASSERT_EQ(samples.count(), 2U);
  EXPECT_EQ(samples.pairs(0), 1);
  std::vector<std::int64_t> lengths;
  samples.append_lengths(0, lengths);
  samples.append_lengths(1, lengths);
  EXPECT_THAT(lengths, testing::ElementsAre(kAround + 1 + 2 - 1, kAround + 1 + 1 - 1, kAround + 1 + 4 - 1, 39));
  std::vector<std::int32_t> inputs(64);
  std::vector<std::int32_t> targets(64, 7);
  static_cast<void>(samples.read(0, inputs, targets));
  EXPECT_EQ(std::ranges::count(targets, 'a'), 2);
  EXPECT_EQ(std::ranges::count(targets, 'b'), 1);

  const Samples packed(dataset, 150, true);
  EXPECT_EQ(packed.count(), 1U);
  EXPECT_EQ(packed.pairs(0), 2);
  EvaluationBatches batches({train(), 64, false, 2, 0});
  ASSERT_EQ(batches.count(), 1U);
  EXPECT_EQ(batches.read(0).pairs, 2);
}

TEST_F(ChatSamplesTest, EvaluateEachConversationOnce) {
  pack_conversations(7);
  EvaluationBatches batches({train(), 64, false, 2, 0});
  ASSERT_EQ(batches.count(), 4U);
  std::int64_t targets = 0;
  for (std::uint64_t i = 0; i < 4; ++i) {
    targets += batches.read(i).target_tokens;
  }
  EXPECT_EQ(targets, 2 + 3 + 4 + 5 + 6 + 7 + 8);
}

TEST_F(ChatSamplesTest, AreCutOrLeftOutWhenTheyAreTooLong) {
  std::vector<std::string> messages;
  PackHooks hooks;
  hooks.message = [&](const std::string& line) { messages.push_back(line); };
  options_.max_tokens = kAround + 4;
  options_.out = folder_ / "cut";
  write_input("chats.json", R"({"instruction": "q", "output": "aaaaaaaa"} {"instruction": "q", "output": "a"}
                               {"instruction": "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", "output": "a"})");
  pack(options_, {}, hooks);
  EXPECT_THAT(messages, testing::ElementsAre("too long: 1 cut to 25 tokens, 1 left out"));
  Dataset cut = Dataset::open(options_.out / "train");
  EXPECT_THAT(cut.document_targets(), testing::ElementsAre(5, 2));

  messages.clear();
  options_.drop_long = true;
  options_.out = folder_ / "dropped";
  pack(options_, {}, hooks);
  EXPECT_THAT(messages, testing::ElementsAre("too long: 0 cut to 25 tokens, 2 left out"));
  Dataset dropped = Dataset::open(options_.out / "train");
  EXPECT_THAT(dropped.document_targets(), testing::ElementsAre(2));
}

// Each input at its weight in training, and once at most elsewhere; only the first conversations of a file.
TEST_F(ChatSamplesTest, SayWhenAllOfThemAreTooLong) {
  options_.max_tokens = 10;
  write_input("chats.json", R"({"instruction": "q", "output": "a"} {"instruction": "qq", "output": "a"})");
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            "nothing is left: all conversations (2) are longer than --max-tokens 10, and so cut have no answer");
}

TEST_F(ChatSamplesTest, AreMixedByWeight) {
  const auto write = [&](const std::string& name, int count, char answer) {
    std::string text;
    for (int i = 0; i < count; ++i) {
      text += R"({"instruction": ")" + std::to_string(i) + R"(", "output": ")" + answer + "\"}\n";
    }
    write_input(name, text);
  };
  write("a.jsonl", 300, 'a');
  write("b.jsonl", 300, 'b');
  write("c.jsonl", 300, 'c');
  const std::filesystem::path folder = options_.inputs.front();
  options_.inputs = {folder / "a.jsonl", folder / "b.jsonl", folder / "c.jsonl"};
  options_.chat_sources = {{{}, 0, 2.5}, {{}, 0, 0.25}, {{}, 40, 1}};
  options_.split = {0.5, 0.5};
  const PackResult result = pack(options_, {}, {});
  const auto answers = [&](const char* split) {
    Dataset dataset = Dataset::open(options_.out / split);
    std::vector<std::int32_t> tokens(dataset.info().tokens);
    dataset.read(0, tokens);
    std::map<char, int> counts;
    for (const char letter : {'a', 'b', 'c'}) {
      // "Assistant:" has an a and an s before each answer: count the answers alone, which stand behind a colon.
      for (std::size_t i = 1; i < tokens.size(); ++i) {
        counts[letter] += tokens[i] == letter && tokens[i - 1] == ':' ? 1 : 0;
      }
    }
    return counts;
  };
  auto train = answers("train");
  auto valid = answers("valid");
  // Of a, half are for training, and of these each is taken twice or three times.
  EXPECT_NEAR(train['a'], 150 * 2.5, 60);
  EXPECT_NEAR(valid['a'], 150, 30);
  EXPECT_NEAR(train['b'] + valid['b'], 75, 25);
  EXPECT_EQ(train['c'] + valid['c'], 40);
  EXPECT_EQ(result.splits.at(0).documents, static_cast<std::uint64_t>(train['a'] + train['b'] + train['c']));

  EXPECT_EQ(count_conversations(options_), 640U);
  options_.chat_sources[1].weight = 0.5;
  options_.overwrite = Overwrite::kOthers;
  EXPECT_FALSE(pack(options_, {}, {}).was_complete);
  EXPECT_TRUE(pack(options_, {}, {}).was_complete);
}

// 40 rows, read by two entries: what is asked, and the same the other way round.
class EntriesOfOneFileTest : public ChatSamplesTest {
 protected:
  EntriesOfOneFileTest() {
    std::string text;
    for (int i = 10; i < 50; ++i) {
      text += fmt::format("{{\"instruction\": \"q{0}\", \"output\": \"a{0}\"}}\n", i);
    }
    write_input("num.jsonl", text);
    ChatFormat usual;
    usual.form = ChatFormat::Form::kAlpaca;
    ChatFormat turned = usual;
    std::swap(turned.prompt, turned.response);
    options_.inputs = {folder_ / "in/num.jsonl", folder_ / "in/num.jsonl"};
    options_.chat_sources = {{usual, 0, 1, "num"}, {turned, 0, 2, "rev"}};
  }

  // How often each answer is in a split.
  [[nodiscard]] std::map<std::string, int> answers(const char* split) const {
    Dataset dataset = Dataset::open(options_.out / split);
    std::vector<std::int32_t> tokens(dataset.info().tokens);
    dataset.read(0, tokens);
    const std::string text(tokens.begin(), tokens.end());
    std::map<std::string, int> counts;
    constexpr std::string_view kBefore = "Assistant:";
    for (std::size_t at = text.find(kBefore); at != std::string::npos; at = text.find(kBefore, at + 1)) {
      ++counts[text.substr(at + kBefore.size(), 3)];
    }
    return counts;
  }
};

TEST_F(EntriesOfOneFileTest, AreBothPackedAtTheirWeights) {
  EXPECT_EQ(pack(options_, {}, {}).splits.at(0).documents, 40U + 80U);
  EXPECT_EQ(count_conversations(options_), 80U);
  const auto counts = answers("train");
  EXPECT_EQ(counts.size(), 80U);
  for (int i = 10; i < 50; ++i) {
    EXPECT_EQ(counts.at("a" + std::to_string(i)), 1) << i;
    EXPECT_EQ(counts.at("q" + std::to_string(i)), 2) << i;
  }
}

TEST_F(EntriesOfOneFileTest, HaveEachRowInOneSplit) {
  options_.split = {0.5, 0.5};
  pack(options_, {}, {});
  const auto train = answers("train");
  const auto valid = answers("valid");
  EXPECT_EQ(train.size() + valid.size(), 80U);
  for (int i = 10; i < 50; ++i) {
    EXPECT_EQ(train.contains("a" + std::to_string(i)), train.contains("q" + std::to_string(i))) << i;
  }
}

TEST_F(EntriesOfOneFileTest, AreAnotherDatasetWhenTheyChangePlaces) {
  write_input("x.jsonl", "{\"instruction\": \"q\", \"output\": \"a\"}\n");
  options_.inputs.back() = folder_ / "in/x.jsonl";
  pack(options_, {}, {});
  EXPECT_TRUE(pack(options_, {}, {}).was_complete);
  std::swap(options_.inputs.front(), options_.inputs.back());  // each with the columns and the weight of the other
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
              HasSubstr("holds a dataset packed with source 1 0 most, weight 1, "));
  std::swap(options_.inputs.front(), options_.inputs.back());
  options_.chat_sources.clear();
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
              testing::EndsWith("asked for is none; use --overwrite or another --out"));
}

TEST_F(ChatSamplesTest, HaveEachColumnThatIsNamedInOneRowAtLeast) {
  write_input("a.jsonl",
              R"({"instruction": "q", "output": "a", "more": {"hist": [{"sytem": 1}]}}
                 {"instruction": "q", "output": "a", "input": "i"}
                 {"instruction": "q", "output": "a", "system": null}
                 {"instruction": "q", "output": "a", "late": "s"})");
  ChatFormat format;
  format.form = ChatFormat::Form::kAlpaca;
  options_.inputs = {folder_ / "in/a.jsonl"};
  const auto pack_with = [&](const std::string& key, const std::string& column, std::uint64_t most) {
    options_.chat_sources = {{format, most, 1, "mine", {{"prompt", "instruction"}, {key, column}}}};
    options_.overwrite = Overwrite::kOthers;
    return pack_on_ranks(2, options_);
  };
  const auto refusal = [&](const std::string& key, const std::string& column, std::uint64_t most = 0) {
    return message_of_error(ErrorCode::kUsage, [&] { pack_with(key, column, most); });
  };
  const std::string file = (folder_ / "in/a.jsonl").string();
  EXPECT_EQ(refusal("query", "inptu"), "dataset mine: the column inptu (query) stands in no row of " + file +
                                           "; the rows have input, instruction, late, more, output, system");
  EXPECT_EQ(refusal("system", "sytem"), "dataset mine: the column sytem (system) stands in no row of " + file +
                                            "; the rows have input, instruction, late, more, output, system");
  EXPECT_EQ(refusal("history", "hist", 2), "dataset mine: the column hist (history) stands in no row of " + file +
                                               "; the rows have input, instruction, more, output");
  EXPECT_EQ(refusal("system", "late", 3), "dataset mine: the column late (system) stands in no row of " + file +
                                              "; the rows have input, instruction, more, output, system");
  EXPECT_FALSE(std::filesystem::exists(options_.out));
  EXPECT_EQ(pack_with("system", "late", 0).splits.at(0).documents, 4U);
  EXPECT_EQ(pack_with("system", "system", 0).splits.at(0).documents, 4U);
  write_input("b.jsonl", R"({"instruction": "q", "output": "a", "other": "s"})");
  options_.inputs = {folder_ / "in"};
  EXPECT_EQ(pack_with("system", "other", 0).splits.at(0).documents, 5U);
  options_.out = folder_ / "none";
  EXPECT_EQ(refusal("system", "none"),
            "dataset mine: the column none (system) stands in no row of " + file +
                " and 1 more; the rows have input, instruction, late, more, other, output, system");
}

TEST_F(ChatSamplesTest, MustFitTheSequence) {
  pack_conversations(5);
  Dataset dataset = Dataset::open(train());
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { (void)Samples(dataset, 20, false); }),
            "data: " + train().string() +
                " has a conversation of 31 tokens; data.sequence is 20: raise it, or pack with --max-tokens 21");
}

TEST_F(ChatSamplesTest, NameTheRowThatIsWrongAndLeaveNothing) {
  write_input("chats.json",
              "[{\"instruction\": \"q\", \"output\": \"a\"},\n{\"instruction\": \"q\", \"output\": \"\"}]");
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            (folder_ / "in/chats.json").string() + " line 2: turn 2, the assistant's, is empty");
  EXPECT_FALSE(std::filesystem::exists(options_.out));
  write_input("chats.json", R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
                               {"role": "tool", "content": "q"}, {"role": "assistant", "content": "a"}]})");
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            (folder_ / "in/chats.json").string() +
                " line 1: turn 3 is a tool's, for which the template default has no place");
  options_.chat_template = "";
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
              HasSubstr("--format chat needs a --template: alpaca, chatml"));
  options_.chat_template = "default";
  options_.tokenizer = "bpe:300";
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
              HasSubstr("needs the tokenizer of the model that is to be trained, not bpe:300"));
}

TEST_F(ChatSamplesTest, AreNotTrainedOnAnAnswerOfWeightZero) {
  const auto row = [](const char* first, const char* second) {
    return fmt::format(R"({{"messages": [{{"role": "user", "content": "q"}},
                             {{"role": "assistant", "content": "aaa", "weight": {}}}, {{"role": "user", "content": "q"}},
                             {{"role": "assistant", "content": "a", "weight": {}}}]}})",
                       first, second);
  };
  write_input("chats.json", row("1", "1") + row("0", "1") + row("1", "0"));
  pack(options_, {}, {});
  Dataset dataset = Dataset::open(train());
  EXPECT_THAT(dataset.document_targets(), testing::ElementsAre(4 + 2, 2, 4));  // an answer and what ends it

  const std::string place = (folder_ / "in/chats.json").string() + " line ";
  options_.out = folder_ / "last";
  options_.trained_turns = TrainedTurns::kLast;
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            place + "5: there is no answer to train on: \"weight\" is 0");
  options_.trained_turns = TrainedTurns::kAll;
  write_input("chats.json", row("0", "0"));
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            place + "1: there is no answer to train on: \"weight\" is 0");
}

TEST_F(ChatSamplesTest, AreTheSameOnAnyNumberOfRanks) {
  options_.split = {0.8, 0.1, 0.1};
  options_.shard_mib = 1;
  std::string text;
  for (int i = 0; i < 6000; ++i) {
    const std::string n = std::to_string(i);
    std::string question = random_text(300, static_cast<std::uint64_t>(i));
    std::replace(question.begin(), question.end(), '\n', ' ');
    text += R"({"messages": [{"role": "user", "content": ")" + question + R"("}, {"role": "assistant", "content": ")" +
            n + "\"}]}\n";
  }
  write_input("chats.jsonl", text);
  options_.out = folder_ / "one";
  pack(options_, {}, {});
  options_.out = folder_ / "three";
  pack_on_ranks(3, options_);
  expect_same_files(folder_ / "one", folder_ / "three");
  EXPECT_EQ(Dataset::open(folder_ / "one" / "train").info().documents +
                Dataset::open(folder_ / "one" / "valid").info().documents +
                Dataset::open(folder_ / "one" / "test").info().documents,
            6000U);
}

}  // namespace
}  // namespace lockstep
