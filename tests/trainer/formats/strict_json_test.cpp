#include "trainer/formats/strict_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

std::string complaint(std::string_view text) {
  return message_of_error(ErrorCode::kCorrupt, [&] { (void)parse_strict_json(text, "x.json"); });
}

TEST(StrictJson, ParsesWhatIsValid) {
  EXPECT_EQ(parse_strict_json(R"({"a": [1, {"b": "ä"}], "c": {"b": null}})", "x")["a"][1]["b"], "ä");
}

TEST(StrictJson, RefusesAKeyThatStandsTwiceInOneObject) {
  EXPECT_EQ(complaint(R"({"a": {"b": 1, "b": 2}})"), R"(x.json: key "b" stands twice)");
}

TEST(StrictJson, SaysWhereTheTextStopsBeingJson) {
  EXPECT_EQ(complaint(R"({"a": 1)"), "x.json: not valid JSON at byte 7 of 7");
  EXPECT_THAT(complaint("{} trailing"), HasSubstr("not valid JSON"));
  EXPECT_THAT(complaint(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(complaint("\"\xff\""), HasSubstr("not valid JSON"));
  EXPECT_THAT(complaint("1e999"), HasSubstr("number that is out of range"));
}

TEST(StrictJson, RefusesDeepNesting) {
  EXPECT_THAT(complaint(std::string(100'000, '[')), HasSubstr("nested deeper than 64"));
}

TEST(Quoted, EscapesAndShortensWhatAFileMayContain) {
  EXPECT_EQ(quoted_name("a.b"), "\"a.b\"");
  EXPECT_EQ(quoted_name("a\nb\x01"), "\"a\\x0ab\\x01\"");
  EXPECT_EQ(quoted_name(std::string(200, 'x')), "\"" + std::string(100, 'x') + "...\"");
}

}  // namespace
}  // namespace lockstep
