#include "data/chat/conversation.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "data/chat/dataset_info.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

Conversation read(const std::string& json) {
  std::string problem;
  const auto conversation = parse_conversation(json, {}, problem);
  EXPECT_EQ(problem, "");
  return conversation.value_or(Conversation{});
}
std::string problem_of(const std::string& json) {
  std::string problem;
  EXPECT_FALSE(parse_conversation(json, {}, problem).has_value());
  return problem;
}

const Conversation kShort = {"", {{Role::kUser, "2+2?"}, {Role::kAssistant, "4"}}};

TEST(ConversationTest, ReadsAlpaca) {
  EXPECT_EQ(read(R"({"instruction": "2+2?", "input": "", "output": "4"})"), kShort);
  EXPECT_EQ(read(R"({"instruction": "2+2?", "input": null, "output": "4", "score": 7})"), kShort);
  EXPECT_EQ(read(R"({"instruction": "Add.", "input": "2, 2", "output": "4"})").turns[0].text, "Add.\n2, 2");
  EXPECT_EQ(read(R"({"instruction": "", "input": "2, 2", "output": "4"})").turns[0].text, "2, 2");
  const Conversation all = {
      "Be brief.", {{Role::kUser, "a"}, {Role::kAssistant, "b"}, {Role::kUser, "2+2?"}, {Role::kAssistant, "4"}}};
  EXPECT_EQ(read(R"({"instruction": "2+2?", "output": "4", "system": "Be brief.", "history": [["a", "b"]]})"), all);
}

TEST(ConversationTest, ReadsSharegpt) {
  EXPECT_EQ(read(R"({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]})"), kShort);
  const Conversation all = {
      "Be brief.",
      {{Role::kUser, "2+2?"}, {Role::kAssistant, "add 2 2"}, {Role::kTool, "4"}, {Role::kAssistant, "It is 4."}}};
  EXPECT_EQ(read(R"({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2+2?"},
                     {"from": "function_call", "value": "add 2 2"
}, {"from": "observation", "value": "4"},
                     {"from": "gpt", "value": "It is 4."}], "tools": ""
})"),
            all);
  EXPECT_EQ(read(R"({"system": "Be brief.", "conversations": [{"from": "human", "value": "2+2?"},
                     {"from": "gpt", "value": "4"}]})")
                .system,
            "Be brief.");
}

TEST(ConversationTest, ReadsOpenAisMessages) {
  EXPECT_EQ(read(R"({"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]})"),
            kShort);
  EXPECT_EQ(read(R"({"conversations": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]})"),
            kShort);
  EXPECT_EQ(read(R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "2+"},
                     {"type": "text", "text": "2?"}]}, {"role": "assistant", "content": "4"}]})"),
            kShort);
}

TEST(ConversationTest, TakesEmptyToolsForNone) {
  for (const char* tools : {"null", "[]", "{}", R"("")", R"(" \n")", R"("[]")", R"(" [ ] ")", R"("{}")", R"("null")"}) {
    for (const char* key : {"tools", "functions", "images"}) {
      EXPECT_EQ(read(std::string(R"({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4",
                                    "tool_calls": )") +
                     tools + R"(, "function_call": )" + tools + "}], \"" + key + "\": " + tools + "}"),
                kShort)
          << tools;
    }
  }
}

TEST(ConversationTest, RefusesWhatTemplatesDoNotShow) {
  const auto with = [](const std::string& of_answer, const std::string& of_object) {
    return R"({"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4")" + of_answer +
           "}]" + of_object + "}";
  };
  EXPECT_EQ(problem_of(with(R"(, "tool_calls": [{"id": "1"}])", "")),
            "turn 2: \"tool_calls\" calls functions, which templates do not show yet");
  EXPECT_EQ(problem_of(with(R"(, "function_call": {"name": "add"})", "")),
            "turn 2: \"function_call\" calls functions, which templates do not show yet");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "user", "content": "2+2?"},
                           {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}]})"),
            "turn 2: \"tool_calls\" calls functions, which templates do not show yet");
  EXPECT_EQ(problem_of(with("", R"(, "functions": [{"name": "add"}])")),
            "\"functions\" describes functions, which templates do not show yet");
  EXPECT_EQ(problem_of(with("", R"(, "tools": "[{}]")")),
            "\"tools\" describes functions, which templates do not show yet");
  EXPECT_EQ(problem_of(R"({"conversations": [{"from": "human", "value": "<image>What is it?"},
                           {"from": "gpt", "value": "4"}], "images": ["4.png"]})"),
            "turn 1 speaks of \"images\" (<image>), which models here do not take");
  EXPECT_EQ(problem_of(R"({"instruction": "Hear <audio>", "output": "4", "audios": ["4.wav"]})"),
            "turn 1 speaks of \"audios\" (<audio>), which models here do not take");
  EXPECT_EQ(problem_of(R"({"instruction": "2+2?", "output": "See <video>", "videos": ["4.mp4"]})"),
            "turn 2 speaks of \"videos\" (<video>), which models here do not take");
  EXPECT_EQ(read(R"({"instruction": "2+2?", "output": "4", "images": ["unused.png"]})"), kShort);
  EXPECT_EQ(read(R"({"instruction": "What is <image> in HTML?", "output": "4", "images": []})").turns.size(), 2U);
}

TEST(ConversationTest, ReadsTheWeightOfAnAnswer) {
  const auto weighted = [](const std::string& weight) {
    return R"({"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "weight": )" +
           weight + R"(}, {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]})";
  };
  Conversation twice = kShort;
  twice.turns.insert(twice.turns.end(), kShort.turns.begin(), kShort.turns.end());
  for (const char* one : {"1", "1.0", "null"}) {
    EXPECT_EQ(read(weighted(one)), twice) << one;
  }
  twice.turns[1].is_trained = false;
  EXPECT_EQ(read(weighted("0")), twice);
  EXPECT_EQ(problem_of(weighted("0.5")), "turn 2: \"weight\" is 0.5, expected 0 or 1");
  EXPECT_EQ(problem_of(weighted("true")), "turn 2: \"weight\" is true, expected 0 or 1");
  EXPECT_EQ(problem_of(weighted("\"0\"")), "turn 2: \"weight\" is \"0\", expected 0 or 1");
}

TEST(ConversationTest, SaysWhatIsWrong) {
  EXPECT_EQ(problem_of(R"({"text": "?"})"), "neither \"messages\" nor \"conversations\" nor \"instruction\" is there");
  EXPECT_EQ(problem_of(R"({"instruction": "2+2?"})"), "\"output\" is missing");
  EXPECT_EQ(problem_of(R"({"instruction": "2+2?", "output": ""})"), "turn 2, the assistant's, is empty");
  EXPECT_EQ(problem_of(R"({"instruction": 4, "output": "4"})"), "\"instruction\" is not a text");
  EXPECT_EQ(problem_of(R"({"instruction": "a", "output": "4", "history": [["a"]]})"),
            "\"history\" holds something else than pairs of texts");
  EXPECT_EQ(problem_of(R"({"messages": []})"), "there are no turns");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "user", "content": "2+2?"}]})"), "there is no answer after turn 1");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "assistant", "content": "4"}]})"),
            "turn 1 is the assistant's, expected the user's or a tool's");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]})"),
            "turn 2 is the user's, expected the assistant's");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                           {"role": "system", "content": "c"}]})"),
            "turn 3 is the system's, which stands at the beginning alone");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "critic", "content": "a"}]})"),
            "turn 1: \"role\" is \"critic\", expected system, user, assistant, tool or sharegpt's human, gpt, "
            "observation, function_call");
  EXPECT_EQ(problem_of(R"({"messages": [{"content": "a"}]})"), "turn 1: \"role\" is missing");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"),
            "turn 1: \"content\" holds a part that is not text");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "user"}]})"), "turn 1: \"content\" is missing");
  EXPECT_EQ(problem_of(R"({"messages": "hello"})"), "\"messages\" is not a list");
  EXPECT_EQ(problem_of(R"({"messages": ["hello"]})"), "turn 1 is not an object");
  EXPECT_EQ(problem_of(R"({"instruction": "a", "output": "b", "tools": "[{}]"})"),
            "\"tools\" describes functions, which templates do not show yet");
  EXPECT_EQ(problem_of("[1]"), "not a JSON object");
  EXPECT_EQ(problem_of("{\"instruction\": }"), "not valid JSON at byte 17");
  EXPECT_EQ(problem_of("{\"n\": 1e999}"), "a number that does not fit");
}

// Two answers to one question.
Conversation pair(const std::string& system = "") {
  return {system, {{Role::kUser, "2+2?"}, {Role::kAssistant, "4"}}, "5"};
}

TEST(ParsePair, ReadsWhatPeopleKeepPairsIn) {
  ChatFormat format;
  format.is_pairs = true;
  for (const char* text : {
           R"({"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"})",
           R"({"conversations": [{"from": "human", "value": "2+2?"}], "chosen": {"from": "gpt", "value": "4"},
               "rejected": {"from": "gpt", "value": "5"}})",
           R"({"messages": [{"role": "user", "content": "2+2?"}], "chosen": {"role": "assistant", "content": "4"},
               "rejected": {"role": "assistant", "content": "5"}})",
           R"({"conversations": [{"from": "human", "value": "2+2?"}], "chosen": "4", "rejected": "5"})",
           R"({"prompt": "2+2?", "chosen": "4", "rejected": "5"})",
           R"({"prompt": [{"role": "user", "content": "2+2?"}], "chosen": [{"role": "assistant", "content": "4"}],
               "rejected": [{"role": "assistant", "content": "5"}]})",
           R"({"chosen": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
               "rejected": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"}]})",
       }) {
    std::string problem;
    EXPECT_EQ(parse_conversation(text, format, problem), pair()) << text << ": " << problem;
  }
  std::string problem;
  EXPECT_EQ(parse_conversation(R"({"instruction": "2+2?", "system": "Be brief.", "chosen": "4", "rejected": "5"})",
                               format, problem),
            pair("Be brief."));
}

TEST(ParsePair, SaysWhatIsWrong) {
  ChatFormat format;
  format.is_pairs = true;
  const auto problem_of = [&](const char* text) {
    std::string problem;
    EXPECT_FALSE(parse_conversation(text, format, problem)) << text;
    return problem;
  };
  EXPECT_EQ(problem_of(R"({"instruction": "2+2?", "output": "4"})"), "\"chosen\" is missing");
  EXPECT_EQ(problem_of(R"({"instruction": "2+2?", "chosen": "4"})"), "\"rejected\" is missing");
  EXPECT_EQ(problem_of(R"({"instruction": "2+2?", "chosen": "4", "rejected": ["5"]})"), "\"rejected\" is not a text");
  EXPECT_EQ(problem_of(R"({"instruction": "2+2?", "chosen": "4", "rejected": ""})"),
            "turn 2, the assistant's, is empty");
  EXPECT_EQ(problem_of(R"({"instruction": "2+2?", "chosen": "4", "rejected": "4"})"),
            "\"chosen\" and \"rejected\" are the same");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "user", "content": "2+2?"}], "chosen": 4, "rejected": "5"})"),
            "\"chosen\" is neither a text nor a message nor a list of them");
  EXPECT_EQ(problem_of(R"({"messages": [{"role": "user", "content": "2+2?"}], "chosen": "4",
                           "rejected": {"role": "assistant", "content": "5", "weight": 0}})"),
            "\"weight\" is 0 in an answer of a pair, both of which count");
  EXPECT_EQ(problem_of(R"({"chosen": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
                           "rejected": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]})"),
            "\"chosen\" and \"rejected\" answer different conversations");
}

NamedDataset entry(const std::string& text) {
  return parse_named_dataset("{\"mine\": " + text + ", \"other\": {}}", "info.json", "data", "mine");
}
std::string refusal(const std::string& text) {
  return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(entry(text)); });
}

TEST(DatasetInfoTest, NamesKeysAndRoles) {
  const NamedDataset plain = entry(R"({"file_name": "a.json"})");
  EXPECT_EQ(plain.path, "data/a.json");
  EXPECT_EQ(plain.format.form, ChatFormat::Form::kAlpaca);
  EXPECT_EQ(plain.most, 0U);
  EXPECT_FALSE(plain.format.is_pairs);
  std::string problem;
  EXPECT_EQ(
      parse_conversation(R"({"instruction": "2+2?", "output": "4", "system": "not a column"})", plain.format, problem),
      kShort);

  const NamedDataset renamed =
      entry(R"({"file_name": "b", "num_samples": 7, "columns": {"prompt": "q", "response": "a", "system": "s"}})");
  EXPECT_EQ(renamed.most, 7U);
  EXPECT_EQ(renamed.columns, (std::map<std::string, std::string>{{"prompt", "q"}, {"response", "a"}, {"system", "s"}}));
  EXPECT_TRUE(plain.columns.empty());
  EXPECT_EQ(parse_conversation(R"({"q": "2+2?", "a": "4", "input": "not a column"})", renamed.format, problem), kShort);
  EXPECT_EQ(parse_conversation(R"({"q": "2+2?", "a": "4", "s": "Be brief."})", renamed.format, problem)->system,
            "Be brief.");

  const NamedDataset talk = entry(
      R"({"file_name": "c", "formatting": "sharegpt", "columns": {"messages": "talk"},
          "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"}})");
  EXPECT_EQ(parse_conversation(R"({"talk": [{"who": "me", "says": "2+2?"}, {"who": "it", "says": "4"}]})", talk.format,
                               problem),
            kShort);
  EXPECT_FALSE(parse_conversation(R"({"talk": [{"who": "user", "says": "2+2?"}]})", talk.format, problem));
  EXPECT_EQ(problem, "turn 1: \"who\" is \"user\", expected system, me, it, observation or function_call");

  const NamedDataset openai = entry(R"({"file_name": "d", "formatting": "openai"})");
  EXPECT_EQ(parse_conversation(R"({"messages": [{"role": "user", "content": "2+2?"},
                                   {"role": "assistant", "content": "4"}]})",
                               openai.format, problem),
            kShort);
  EXPECT_TRUE(
      entry(R"({"file_name": "e", "ranking": true, "columns": {"prompt": "p", "chosen": "c", "rejected": "r"}})")
          .format.is_pairs);
}

TEST(DatasetInfoTest, SaysWhatIsWrong) {
  EXPECT_EQ(message_of_error(ErrorCode::kUsage,
                             [] { (void)parse_named_dataset(R"({"a": {}, "b": {}})", "info.json", "data", "c"); }),
            "info.json: no dataset is called c; expected a, b");
  EXPECT_EQ(
      message_of_error(ErrorCode::kUsage, [] { (void)parse_named_dataset("{\"a\": ", "info.json", "data", "a"); }),
      "info.json: expected a JSON object");
  EXPECT_EQ(refusal("3"), "info.json: mine is not an object");
  EXPECT_EQ(refusal("{}"), "info.json: mine: file_name is missing");
  EXPECT_EQ(
      refusal(R"({"hf_hub_url": "x/y"})"),
      "info.json: mine is hf_hub_url \"x/y\", which is fetched from elsewhere; fetch it first, and name the file in "
      "file_name");
  EXPECT_EQ(refusal(R"({"file_name": "a", "formatting": "parquet"})"),
            "info.json: mine: formatting is parquet, expected alpaca, sharegpt or openai");
  EXPECT_EQ(refusal(R"({"file_name": "a", "columns": {"images": "i"}})"),
            "info.json: mine: columns: images means nothing here; expected prompt, query, response, history, messages, "
            "system, tools, chosen, rejected");
  EXPECT_EQ(refusal(R"({"file_name": "a", "columns": {"response": "r"}})"),
            "info.json: mine: columns name neither a prompt nor a query");
  EXPECT_EQ(refusal(R"({"file_name": "a", "num_samples": 0})"),
            "info.json: mine: num_samples is 0, expected a number of at least 1");
}

}  // namespace
}  // namespace lockstep
