#include "data/pack/inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>
#include <vector>

#include "tests/data/pack/pack_fixture.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

class InputsTest : public PackTest {
 protected:
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const InputFile& file : find_inputs(options_)) {
      names.push_back(file.name);
    }
    return names;
  }
};

TEST_F(InputsTest, FindsFilesInFoldersInTheOrderOfTheirPaths) {
  write_input("b.txt", "b");
  write_input("a/z.txt", "z");
  write_input("a.txt", "aa");
  write_input("empty.txt", "");
  EXPECT_EQ(names(), (std::vector<std::string>{"a/z.txt", "a.txt", "b.txt"}));
  EXPECT_EQ(find_inputs(options_)[1].size, 2U);
}

TEST_F(InputsTest, TakesAFileOnceHoweverOftenItIsGiven) {
  write_input("a/x.txt", "x");
  options_.inputs = {folder_ / "in", folder_ / "in/a", folder_ / "in/a/x.txt", folder_ / "in/../in/a/x.txt"};
  EXPECT_EQ(names(), (std::vector<std::string>{"a/x.txt"}));
}

TEST_F(InputsTest, CountsEntriesOfDatasetInfoEachForItself) {
  write_input("x.json", "x");
  write_input("y.json", "y");
  options_.inputs = {folder_ / "in/x.json", folder_ / "in", folder_ / "in/x.json"};
  options_.chat_sources = {{{}, 0, 1, "num"}, {{}, 0, 1, "all"}, {{}, 0, 1, "num"}};
  const std::vector<InputFile> files = find_inputs(options_);
  EXPECT_EQ(names(), (std::vector<std::string>{"x.json", "x.json", "x.json", "y.json"}));
  std::vector<std::size_t> inputs;
  for (const InputFile& file : files) {
    inputs.push_back(file.input);
  }
  EXPECT_EQ(inputs, (std::vector<std::size_t>{0, 1, 2, 1}));
}

TEST_F(InputsTest, RefusesAFileThatIsGivenTwiceWithWeights) {
  write_input("x.json", "x");
  const std::string file = folder_ / "in/x.json";
  options_.inputs = {file, file};
  const auto error = [&] {
    return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(find_inputs(options_)); });
  };
  options_.chat_sources = {{{}, 0, 3}, {{}, 0, 1}};
  EXPECT_EQ(error(), file + " is found under two inputs, " + file + " (weight 3) and " + file +
                         " (weight 1); give it once, with one weight");
  options_.inputs = {file, folder_ / "in"};
  options_.chat_sources = {{{}, 0, 2}, {{}, 0, 2}};
  EXPECT_EQ(error(), file + " is found under two inputs, " + file + " (weight 2) and " + (folder_ / "in").string() +
                         " (weight 2); give it once, with one weight");
  options_.chat_sources = {{{}, 5, 1}, {{}, 5, 1}};  // --max-samples alone
  EXPECT_EQ(names(), (std::vector<std::string>{"x.json"}));
}

TEST_F(InputsTest, SkipsLinksInsideFoldersAndFollowsThoseItIsGiven) {
  write_input("a.txt", "a");
  std::filesystem::create_symlink(folder_ / "in", folder_ / "in/loop");
  std::filesystem::create_symlink(folder_ / "in/a.txt", folder_ / "in/again.txt");
  std::filesystem::create_symlink(folder_ / "in", folder_ / "link");
  EXPECT_EQ(names(), (std::vector<std::string>{"a.txt"}));
  options_.inputs = {folder_ / "link"};
  EXPECT_EQ(names(), (std::vector<std::string>{"a.txt"}));
}

TEST_F(InputsTest, FiltersNamesByPatterns) {
  for (const char* name : {"vector", "stdio.h", "x.cpp", "sub/map", "sub/y.h"}) {
    write_input(name, "x");
  }
  options_.include = {"*.h"};
  EXPECT_EQ(names(), (std::vector<std::string>{"stdio.h", "sub/y.h"}));
  options_.include = {"*.h", "!*.*"};
  EXPECT_EQ(names(), (std::vector<std::string>{"stdio.h", "sub/map", "sub/y.h", "vector"}));
  options_.inputs = {folder_ / "in/x.cpp"};
  EXPECT_EQ(names(), (std::vector<std::string>{"x.cpp"})) << "a file that is given by name is wanted";
}

TEST_F(InputsTest, SkipsBinaryFilesOnlyWhenAsked) {
  write_input("a.txt", "text");
  write_input("b.bin", std::string("ELF\0x", 5));
  EXPECT_EQ(names().size(), 2U);
  options_.skip_binary = true;
  EXPECT_EQ(names(), (std::vector<std::string>{"a.txt"}));
}

TEST_F(InputsTest, LeavesOutWhatIsWrittenTo) {
  write_input("a.txt", "a");
  write_input("out/train/00000.h5", "packed");
  write_input("out/.pack/pack.json", "packing");
  write_input("out/pack.json", "packed");
  write_input("outer/b.txt", "b");
  std::filesystem::create_symlink(folder_ / "in", folder_ / "link");
  for (const std::filesystem::path& out : {folder_ / "in/out", folder_ / "link/./out"}) {
    options_.out = out;
    EXPECT_EQ(names(), (std::vector<std::string>{"a.txt", "outer/b.txt"}));
  }
  options_.inputs = {folder_ / "in/out/../a.txt"};
  EXPECT_EQ(names(), (std::vector<std::string>{"a.txt"}));
  for (const std::filesystem::path& input : {folder_ / "in/out/train", folder_ / "in/out/train/00000.h5"}) {
    options_.inputs = {input};
    EXPECT_EQ(
        message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(find_inputs(options_)); }),
        input.string() + " lies where the output is written, in " + options_.out.string() + "; use another --out");
  }
}

TEST_F(InputsTest, NamesWhatIsMissingOrEmpty) {
  const auto error = [&] {
    return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(find_inputs(options_)); });
  };
  EXPECT_EQ(error(), "the input is empty: no file with content under " + (folder_ / "in").string());
  options_.include = {"*.h"};
  EXPECT_EQ(error(),
            "the input is empty: no file with content that --include matches under " + (folder_ / "in").string());
  options_.inputs = {folder_ / "nowhere"};
  EXPECT_EQ(error(), "cannot read " + (folder_ / "nowhere").string() + ": No such file or directory");
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  options_.inputs = {folder_ / "pipe"};
  EXPECT_EQ(error(), (folder_ / "pipe").string() + " is neither a file nor a folder");
}

TEST_F(InputsTest, ChangesTheFingerprintWithTheFiles) {
  write_input("a.txt", "a");
  const std::string before = fingerprint_of(find_inputs(options_));
  EXPECT_EQ(fingerprint_of(find_inputs(options_)), before);
  write_input("b.txt", "b");
  EXPECT_NE(fingerprint_of(find_inputs(options_)), before);
}

}  // namespace
}  // namespace lockstep
