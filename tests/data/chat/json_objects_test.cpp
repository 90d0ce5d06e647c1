#include "data/pack/json_objects.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "data/pack/inputs.h"
#include "tests/data/pack/pack_fixture.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::ElementsAre;

class JsonObjectsTest : public PackTest {
 protected:
  // Where the objects of a file are.
  std::vector<std::string> objects_of(const std::string& text, std::uint64_t max_bytes = 1 << 20) {
    write_input("c.json", text);
    std::vector<std::string> objects;
    scan_json_objects(find_inputs(options_).front(), max_bytes, [&](DocumentExtent extent) {
      objects.push_back(text.substr(extent.begin, extent.size));
      return true;
    });
    return objects;
  }
  std::string problem_of(const std::string& text) {
    const std::string message = message_of_error(ErrorCode::kUsage, [&] { (void)objects_of(text); });
    const std::string prefix = (folder_ / "in/c.json").string() + " ";
    EXPECT_THAT(message, testing::StartsWith(prefix));
    return message.substr(prefix.size());
  }
};

TEST_F(JsonObjectsTest, FindsThemInListsAndInLines) {
  EXPECT_THAT(objects_of(R"([{"a": 1}, {"b": {"c": [2, {}]}}])"),
              ElementsAre(R"({"a": 1})", R"({"b": {"c": [2, {}]}})"));
  EXPECT_THAT(objects_of("{\"a\": 1}\n\n  {\"b\": 2}\r\n"), ElementsAre(R"({"a": 1})", R"({"b": 2})"));
  EXPECT_THAT(objects_of("{\n\"a\":\n1}{}"), ElementsAre("{\n\"a\":\n1}", "{}"));
  EXPECT_THAT(objects_of(" [ ] \n"), ElementsAre());
  EXPECT_THAT(objects_of("\xEF\xBB\xBF[{}]"), ElementsAre("{}"));  // a byte order mark
  EXPECT_THAT(objects_of(R"([{"a": "}\"]{\\"}])"), ElementsAre(R"({"a": "}\"]{\\"})"));
}

// An escape, a brace, an end of text on either side of where a block ends.
TEST_F(JsonObjectsTest, DoesNotMindWhereBlocksEnd) {
  const std::string tail = R"(\"}\\", "b": {}} {"c": 3})";
  for (std::size_t shift = 0; shift < tail.size() + 2; ++shift) {
    const std::string begin = R"({"a": ")";
    const std::string text = begin + std::string((1 << 20) - begin.size() - shift, 'x') + tail;
    const std::vector<std::string> objects = objects_of(text, 1 << 21);
    ASSERT_EQ(objects.size(), 2U) << shift;
    EXPECT_EQ(objects[0].size(), text.size() - 9);
    EXPECT_EQ(objects[1], R"({"c": 3})");
  }
}

TEST_F(JsonObjectsTest, NamesTheLineThatIsWrong) {
  EXPECT_EQ(problem_of("[{},\n]"), "line 2: found ']' where a JSON object was expected");
  EXPECT_EQ(problem_of("[{},\n{\"a\": \"b"), "line 2: the object is cut short");
  EXPECT_EQ(problem_of("[{},\n{\"a\": \"b\\"), "line 2: the object is cut short");
  EXPECT_EQ(problem_of("[{}\n"), "line 2: the list is cut short");
  EXPECT_EQ(problem_of("[{}\n{}]"), "line 2: found '{' where a JSON object was expected");
  EXPECT_EQ(problem_of("[,{}]"), "line 1: found ',' where a JSON object was expected");
  EXPECT_EQ(problem_of("{}\n,{}"), "line 2: found ',' where a JSON object was expected");
  EXPECT_EQ(problem_of("{}\n[{}]"), "line 2: found '[' where a JSON object was expected");
  EXPECT_EQ(problem_of("[{}]\n{}"), "line 2: found '{' where a JSON object was expected");
  EXPECT_EQ(problem_of("[[{}]]"), "line 1: found '[' where a JSON object was expected");
  EXPECT_EQ(problem_of("\"text\""), "line 1: found '\"' where a JSON object was expected");
  EXPECT_EQ(problem_of("\n\xC3\xA9"), "line 2: found '?' where a JSON object was expected");
  EXPECT_EQ(problem_of("[\n{\"a\": \"" + std::string(3 << 20, 'x')),
            "line 2: an object longer than 1 MiB; raise --memory");
}

}  // namespace
}  // namespace lockstep
