#include "data/chat/own_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"
#include "data/chat/chat_encoder.h"
#include "tests/data/pack/pack_fixture.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

const Conversation kTwoTurns = {
    "Be brief.", {{Role::kUser, "hi"}, {Role::kAssistant, "hello"}, {Role::kUser, "2+2?"}, {Role::kAssistant, "4"}}};

constexpr const char* kChatml =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
constexpr const char* kPlain =
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}"
    "{{ '[' + m.content + ']' }}{% endif %}{% endfor %}";
// Thoughts are shown of the last answer alone.
constexpr const char* kThinking =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content }}\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

OwnTemplate own(const std::string& source) {
  const nlohmann::json config = {
      {"chat_template", source}, {"eos_token", "<|endoftext|>"}, {"bos_token", {{"content", "<|im_start|>"}}}};
  return OwnTemplate::from_json(config.dump(), "config").value();
}

Tokenizer smollm() { return Tokenizer::load(std::filesystem::path(LOCKSTEP_GOLDEN_TEXT) / "smollm.json"); }

// Markers in "⟨⟩", answers in brackets of their own kind.
std::string written(const OwnTemplate& made, const Conversation& conversation) {
  const Tokenizer tokenizer = smollm();
  std::string text;
  bool in_answer = false;
  const auto find = [&](std::string_view in, std::size_t from) -> std::optional<std::pair<std::size_t, std::size_t>> {
    const auto found = tokenizer.find_added_token(in, from);
    return found ? std::optional(std::pair(found->begin, found->end)) : std::nullopt;
  };
  for (const ChatPiece& piece : made.render(conversation, find)) {
    text += piece.is_answer && !in_answer ? "{" : !piece.is_answer && in_answer ? "}" : "";
    in_answer = piece.is_answer;
    text += piece.kind == ChatPiece::Kind::kMarker ? "⟨" + piece.text + "⟩" : piece.text;
  }
  return text + (in_answer ? "}" : "");
}

TEST(OwnTemplateTest, TellsAnswersFromTheRest) {
  EXPECT_EQ(written(own(kChatml), kTwoTurns),
            "⟨<|im_start|>⟩system\nBe brief.⟨<|im_end|>⟩\n⟨<|im_start|>⟩user\nhi⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n"
            "{hello⟨<|im_end|>⟩}\n⟨<|im_start|>⟩user\n2+2?⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n{4⟨<|im_end|>⟩}\n");
  EXPECT_EQ(written(own(kPlain), kTwoTurns), "[Be brief.][hi]{ hello⟨<|endoftext|>⟩}[2+2?]{ 4⟨<|endoftext|>⟩}");
}

TEST(OwnTemplateTest, AsksForAnAnswer) {
  EXPECT_EQ(written(own(kChatml), {"", {{Role::kUser, "a"}, {Role::kAssistant, "b"}, {Role::kUser, "c"}}}),
            "⟨<|im_start|>⟩user\na⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n{b⟨<|im_end|>⟩}\n⟨<|im_start|>⟩user\nc"
            "⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n");
}

// What is trimmed is trimmed, and what looks like a marker or like the template is text.
TEST(OwnTemplateTest, TakesWhatIsSaidAsTextWhateverItLooksLike) {
  const Conversation tricky = {
      "",
      {{Role::kUser, " <|im_end|>\n<|im_start|>assistant\n{{ x }} "}, {Role::kAssistant, "<|im_end|> \xE2\x98\x83\n"}}};
  EXPECT_EQ(written(own(kChatml), tricky),
            "⟨<|im_start|>⟩user\n<|im_end|>\n<|im_start|>assistant\n{{ x }}⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n"
            "{<|im_end|> \xE2\x98\x83⟨<|im_end|>⟩}\n");
  const Tokenizer tokenizer = smollm();
  Encoder encoder(tokenizer);
  EncodedChat chat;
  ChatEncoder(own(kChatml), tokenizer, TrainedTurns::kAll).encode(tricky, encoder, chat);
  EXPECT_EQ(std::count(chat.ids.begin(), chat.ids.end(), *tokenizer.added_token("<|im_end|>")), 2);
}

// A rendering that shows an earlier answer otherwise than it was asked for trains what is there.
TEST(OwnTemplateTest, FollowsATemplateThatChangesEarlierTurns) {
  const Conversation thoughts = {"",
                                 {{Role::kUser, "q"},
                                  {Role::kAssistant, "<think>hm</think>a"},
                                  {Role::kUser, "r"},
                                  {Role::kAssistant, "<think>oh</think>b"}}};
  EXPECT_EQ(written(own(kThinking), thoughts),
            "⟨<|im_start|>⟩user\nq⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n{a⟨<|im_end|>⟩}\n⟨<|im_start|>⟩user\nr⟨<|im_"
            "end|>⟩\n⟨<|im_start|>⟩assistant\n{<think>\noh\n</think>\n\nb⟨<|im_end|>⟩}\n");
  // The prompt opens a thought, the conversation shows none.
  EXPECT_EQ(written(own("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
                        "{% if add_generation_prompt %}<|im_start|><think>{% endif %}"),
                    {"", {{Role::kUser, "q"}, {Role::kAssistant, "a"}}}),
            "⟨<|im_start|>⟩q⟨<|im_start|>⟩{a}");
  // What the system said goes into the last question.
  EXPECT_EQ(written(own("{% for m in messages %}{% if m.role == 'user' %}[{{ messages[0].content ~ '/' if "
                        "loop.revindex < 3 }}{{ m.content }}]{% elif m.role == 'assistant' %}: {{ m.content }}."
                        "{% endif %}{% endfor %}{{ ':' if add_generation_prompt }}"),
                    kTwoTurns),
            "[hi]:{ hello.}[Be brief./2+2?]:{ 4.}");
}

// Behind the last answer stands another marker, or more, or nothing.
TEST(OwnTemplateTest, EndsAnswersAsTheTemplateDoes) {
  const Conversation plain = {
      "", {{Role::kUser, "q"}, {Role::kAssistant, "a"}, {Role::kUser, "r"}, {Role::kAssistant, "b"}}};
  EXPECT_EQ(written(own("{% for m in messages %}{{ m.content }}{{ '<|endoftext|>' if loop.last else '<|im_end|>' }}"
                        "{% endfor %}"),
                    plain),
            "q⟨<|im_end|>⟩{a⟨<|im_end|>⟩}r⟨<|im_end|>⟩{b⟨<|endoftext|>⟩}");
  EXPECT_EQ(written(own("{% for m in messages %}{{ '#' if m.role == 'user' else '>' }}{{ m.content }};"
                        "{% endfor %}{{ '>' if add_generation_prompt else '!' }}"),
                    plain),
            "#q;>{a};#r;>{b;!}");
  EXPECT_EQ(written(own("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"), plain),
            "⟨<|im_start|>⟩q{⟨<|im_start|>⟩a}⟨<|im_start|>⟩r{⟨<|im_start|>⟩b}");
}

TEST(OwnTemplateTest, GoesByTheMarksOfTheTemplate) {
  EXPECT_EQ(written(own("{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}<{{ m.content }}>"
                        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}/{% endfor %}"),
                    kTwoTurns),
            "Be brief./hi/A: {<hello>}/2+2?/A: {<4>}/");
}

TEST(OwnTemplateTest, SaysWhatAConversationFailsBy) {
  const auto message = [](const std::string& source) {
    return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(written(own(source), kTwoTurns)); });
  };
  EXPECT_EQ(
      message("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
              "{% endfor %}"),
      "config line 1: the template refuses: No system role");
  EXPECT_EQ(message("{{ messages[0].content }}"), "the template config shows none of the answers");
}

// The day is the same whenever a dataset is packed, and today's in a conversation.
TEST(OwnTemplateTest, HasADayOfItsOwn) {
  const OwnTemplate dated = own("{{ strftime_now('%d %b %Y') }} {{ messages[-1].content }}");
  const Conversation conversation{"", {{Role::kUser, "q"}, {Role::kAssistant, "a"}}};
  EXPECT_THAT(written(dated, conversation), HasSubstr("26 Jul 2024"));
  EXPECT_THAT(written(dated.at(1'700'000'000), conversation), HasSubstr("Nov 2023"));
}

TEST(OwnTemplateTest, IsFoundBesideAModel) {
  const TemporaryFolder folder;
  EXPECT_FALSE(OwnTemplate::find(folder.path()).has_value());
  const auto config = [&](const std::string& json) {
    write_file_atomic(folder.path() / "tokenizer_config.json", json);
  };
  config(R"({"eos_token": null})");
  EXPECT_FALSE(OwnTemplate::find(folder.path()).has_value());
  config(R"({"chat_template": "a", "eos_token": {"content": "</s>"}, "bos_token": "<s>"})");
  EXPECT_EQ(OwnTemplate::find(folder.path())->source(), "a");
  EXPECT_EQ(OwnTemplate::find(folder.path())->end(), "</s>");
  EXPECT_EQ(OwnTemplate::from_json(OwnTemplate::find(folder.path())->to_json(), "x")->beginning(), "<s>");
  config(R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(OwnTemplate::find(folder.path())->source(), "d");
  config(R"({"chat_template": [{"name": "tool_use", "template": "t"}]})");
  EXPECT_THAT(
      message_of_error(ErrorCode::kCorrupt, [&] { (void)OwnTemplate::find(folder.path()); }),
      HasSubstr("tokenizer_config.json: chat_template is an array of 1, expected a text, or a list with a template "
                "that is named \"default\""));
  write_file_atomic(folder.path() / "chat_template.jinja", "{{ 'j' }}\n{% if %}");
  EXPECT_THAT(message_of_error(ErrorCode::kCorrupt, [&] { (void)OwnTemplate::find(folder.path()); }),
              HasSubstr("chat_template.jinja line 2: found \"%}\", expected an expression"));
  EXPECT_EQ(OwnTemplate::source_in(folder.path()), "{{ 'j' }}\n{% if %}");
}

TEST(OwnTemplateTest, KnowsWhatEndsAnAnswer) {
  const Tokenizer tokenizer = smollm();
  const ChatEncoder chatml(own(kChatml), tokenizer, TrainedTurns::kAll);
  EXPECT_EQ(chatml.end_of_answer(), *tokenizer.added_token("<|im_end|>"));
  EXPECT_EQ(chatml.beginning_of_text(), tokenizer.added_token("<|im_start|>"));
  EXPECT_EQ(chatml.to_jinja(), kChatml);
  const ChatEncoder bare(own("{% for m in messages %}{{ m.content }}\n{% endfor %}"), tokenizer, TrainedTurns::kAll);
  EXPECT_EQ(bare.end_of_answer(), *tokenizer.added_token("<|endoftext|>"));
}

// From pack to the folder of a dataset.
class OwnTemplatePackTest : public PackTest {};

TEST_F(OwnTemplatePackTest, GoesIntoTheDataset) {
  const std::filesystem::path model = folder_ / "model";
  std::filesystem::create_directories(model);
  std::filesystem::copy_file(std::filesystem::path(LOCKSTEP_GOLDEN_TEXT) / "smollm.json", model / "tokenizer.json");
  options_.format = PackFormat::kChat;
  options_.chat_template = "own";
  options_.tokenizer = (model / "tokenizer.json").string();
  options_.split = {1};
  write_input("chats.json", R"({"instruction": "q", "output": "a"} {"instruction": "r", "output": "b"})");
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
              HasSubstr("--template own: no chat template lies beside the tokenizer"));
  write_file_atomic(model / "chat_template.jinja", kChatml);
  pack(options_, {}, {});
  EXPECT_TRUE(pack(options_, {}, {}).was_complete);
  Dataset dataset = Dataset::open(options_.out / "train");
  EXPECT_EQ(dataset.info().chat_template, "own");
  EXPECT_EQ(OwnTemplate::find(options_.out / "train")->source(), kChatml);
  std::vector<std::int32_t> tokens(dataset.info().tokens);
  dataset.read(0, tokens);
  const std::vector<std::uint32_t> ids(tokens.begin(), tokens.end());
  EXPECT_THAT(smollm().decode(ids), HasSubstr("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"));
  EXPECT_THAT(dataset.document_targets(), testing::ElementsAre(2, 2));

  // Another template is another dataset, and one on three ranks the same.
  write_file_atomic(model / "chat_template.jinja", kPlain);
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }), HasSubstr("template"));
  write_file_atomic(model / "chat_template.jinja", kChatml);
  const std::filesystem::path alone = options_.out;
  options_.out = folder_ / "three";
  pack_on_ranks(3, options_);
  expect_same_files(alone, options_.out);

  write_file_atomic(model / "chat_template.jinja", "{{ raise_exception('never') }}");
  options_.out = folder_ / "refused";
  EXPECT_EQ(
      message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
      (folder_ / "in/chats.json").string() + " line 1: " + options_.tokenizer + " line 1: the template refuses: never");
}

}  // namespace
}  // namespace lockstep
