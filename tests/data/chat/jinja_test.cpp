// The golden cases are jinja2's: tests/golden/text/make_jinja_cases.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"
#include "data/chat/jinja/jinja_template.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

JinjaValue from_json(std::string_view json) { return JinjaValue::from_json(json, "context"); }

std::string rendered(std::string_view source, std::string_view context = "{}") {
  return JinjaTemplate::parse(source, "t").render(from_json(context));
}

std::string message(std::string_view source, std::string_view context = "{}") {
  return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(rendered(source, context)); });
}

std::string parse_message(std::string_view source) {
  return message_of_error(ErrorCode::kCorrupt, [&] { static_cast<void>(JinjaTemplate::parse(source, "t")); });
}

TEST(JinjaTest, RendersWhatJinja2Renders) {
  ASSERT_EQ(::setenv("TZ", "UTC", 1), 0);
  const std::filesystem::path folder = LOCKSTEP_GOLDEN_TEXT;
  const auto cases = nlohmann::ordered_json::parse(read_file(folder / "jinja_cases.json"));
  const JinjaValue usual = from_json(read_file(folder / "jinja_context.json"));
  ASSERT_GT(cases.size(), 200U);
  for (const auto& golden : cases) {
    const auto source = golden["template"].get<std::string>();
    const JinjaValue context = golden["context"].is_null() ? usual : from_json(golden["context"].dump());
    const auto render = [&] { return JinjaTemplate::parse(source, "t").render(context, {.now = 1'700'000'000}); };
    if (golden.contains("fails")) {
      EXPECT_THROW(static_cast<void>(render()), Error) << source << "\n" << golden["fails"];
      continue;
    }
    try {
      EXPECT_EQ(render(), golden["text"].get<std::string>()) << source;
    } catch (const Error& error) {
      ADD_FAILURE() << source << "\n" << error.what();
    }
  }
}

TEST(JinjaTest, NamesTheLineWhereATemplateCannotGoOn) {
  EXPECT_EQ(message("a\n{% if true %}\n{{ x.y }}{% endif %}"), "t line 3: x is undefined");
  EXPECT_EQ(message("{% macro f() %}\n{{ 1 // 0 }}{% endmacro %}\n\n{{ f() }}"), "t line 2: division by zero");
  EXPECT_EQ(message("\n{{ raise_exception('Roles must\n alternate') }}"),
            "t line 2: the template refuses: Roles must  alternate");
  EXPECT_EQ(parse_message("x\n{% if a %}"), "t line 2: the template ends inside a block, expected {% endif %}");
  EXPECT_EQ(parse_message("x\n\n{{ a b }}"), "t line 3: found \"b\", expected }}");
  EXPECT_EQ(parse_message("\xFF"), "t: not UTF-8 at byte 0");
}

TEST(JinjaTest, NamesWhatIsNotSupported) {
  EXPECT_EQ(message("{{ 1 | urlize }}"), "t line 1: the filter urlize is not supported");
  EXPECT_EQ(message("{{ 1 is escaped }}"), "t line 1: the test escaped is not supported");
  EXPECT_EQ(message("{{ cycler(1) }}"), "t line 1: the function cycler is not supported");
  EXPECT_EQ(message("{{ 'a'.format(1) }}"), "t line 1: the method format of texts is not supported");
  EXPECT_EQ(message("{{ '%s' % 1 }}"), "t line 1: % on texts is not supported");
  EXPECT_EQ(parse_message("{% include 'x' %}"), "t line 1: the tag \"include\" is not supported here");
  EXPECT_EQ(parse_message("{% for a in b recursive %}{% endfor %}"), "t line 1: recursive loops are not supported");
  EXPECT_EQ(rendered("{{ 1 | urlize if false }}"), "");
}

TEST(JinjaTest, EndsWhatWouldNotEnd) {
  EXPECT_THAT(message("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
              HasSubstr("takes more than 67108864 steps"));
  EXPECT_THAT(message("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), HasSubstr("nested more than 800 deep"));
  EXPECT_THAT(message("{{ 'x' * 99999999 }}"), HasSubstr("grows above 16777216 elements"));
  EXPECT_THAT(
      message("{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}"),
      HasSubstr("steps"));
  EXPECT_THAT(message("{% set n = namespace(l=[]) %}{% for i in range(999) %}{% set n.l = [n.l] %}{% endfor %}"),
              HasSubstr("nested more than 200 deep"));
  EXPECT_THAT(message("{{ 9223372036854775807 + 1 }}"), HasSubstr("above what 64 bits hold"));
  EXPECT_THAT(message("{% set n = namespace() %}{% set n.n = n %}{{ n }}"), HasSubstr("cannot be printed"));
  EXPECT_THAT(parse_message("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + "}}"),
              HasSubstr("nested more than"));
  EXPECT_THAT(parse_message("{{ a" + std::string(5000, '-') + "1 }}"), HasSubstr("nested more than"));
  std::string sum = "{{ 1";
  std::string blocks;
  for (int i = 0; i < 3000; ++i) {
    sum += " + 1";
    blocks += "{% if a %}";
  }
  EXPECT_THAT(parse_message(sum + " }}"), HasSubstr("nested more than"));
  EXPECT_THAT(parse_message(blocks), HasSubstr("nested more than"));
  EXPECT_THROW(static_cast<void>(from_json(std::string(100'000, '['))), Error);
}

// What a macro or a namespace refers to goes with the rendering, also in a circle.
TEST(JinjaTest, KeepsNothingAlive) {
  EXPECT_EQ(rendered("{% set n = namespace() %}{% set n.n = n %}{% for i in [1] %}{% macro f() %}{{ i }}{% endmacro %}"
                     "{% set n.f = f %}{% endfor %}{{ n.f() }}"),
            "1");
}

// Characters that were said carry it through whatever is done to them.
TEST(JinjaTest, TellsWhatWasSaidFromWhatTheTemplateWrites) {
  const JinjaTemplate made = JinjaTemplate::parse(
      "<{{ (c.split('|')[1] + '!') | trim | upper }}>{{ {'k': c} | tojson }}{% generation %}{{ c[:2] ~ 'z' }}{% "
      "endgeneration %}",
      "t");
  EXPECT_TRUE(made.marks_generation());
  const jinja::Text text = made.render_marked(JinjaValue::record({{"c", JinjaValue::text("a| \"b\"", 5)}}), {});
  std::string said;
  std::string generated;
  for (const char32_t c : text) {
    said += jinja::speaker_of(c) == 5 ? '5' : jinja::speaker_of(c) == 0 ? '.' : '?';
    generated += (c & jinja::kGenerationMark) != 0 ? 'g' : '.';
  }
  EXPECT_EQ(jinja::to_utf8(text), "<\"B\"!>{\"k\": \"a| \\\"b\\\"\"}a|z");
  EXPECT_EQ(said,
            "."
            "555"
            ".."
            "......."
            "5555555"
            "5"
            ".."
            "55.");
  EXPECT_EQ(generated, std::string(text.size() - 3, '.') + "ggg");
  EXPECT_FALSE(JinjaTemplate::parse("{{ c }}", "t").marks_generation());
}

TEST(JinjaTest, TakesContextsInJson) {
  EXPECT_EQ(rendered("{{ a }}", R"({"a": [1, 2.5, "x", null, true, {"b": {}}]})"),
            "[1, 2.5, 'x', None, True, {'b': {}}]");
  EXPECT_EQ(message_of_error(ErrorCode::kCorrupt, [] { static_cast<void>(from_json("{")); }),
            "context: not valid JSON at byte 2");
  EXPECT_EQ(message("x", "[]"), "t line 1: the context is a list, expected a dict");
}

}  // namespace
}  // namespace lockstep
