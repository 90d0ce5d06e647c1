#include "data/chat/jinja/jinja_template.h"

#include <algorithm>

#include "base/error.h"
#include "data/chat/jinja/interpreter.h"
#include "data/chat/jinja/parser.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

constexpr std::size_t kMaxSourceBytes = std::size_t{1} << 20;

[[noreturn]] void report(ErrorCode code, std::string_view name, const jinja::Failure& failure) {
  std::string text = failure.text;
  std::ranges::replace_if(
      text, [](char c) { return c == '\n' || c == '\r'; }, ' ');
  fail(code, "{} line {}: {}", name, std::max(failure.line, 1), text);
}

bool has_generation(const jinja::Block& block) {
  return std::ranges::any_of(block, [](const auto& statement) {
    return statement->kind == jinja::Statement::Kind::kGeneration || has_generation(statement->body) ||
           has_generation(statement->otherwise) ||
           std::ranges::any_of(statement->branches, [](const auto& branch) { return has_generation(branch.second); });
  });
}

}  // namespace

struct JinjaTemplate::Tree {
  jinja::Block block;
};

JinjaTemplate JinjaTemplate::parse(std::string_view source, std::string_view name) {
  if (const std::size_t end = valid_utf8_end(source, 0); end != source.size()) {
    fail(ErrorCode::kCorrupt, "{}: not UTF-8 at byte {}", name, end);
  }
  if (source.size() > kMaxSourceBytes) {
    fail(ErrorCode::kCorrupt, "{}: {} bytes, expected at most {}", name, source.size(), kMaxSourceBytes);
  }
  JinjaTemplate result;
  result.name_ = name;
  try {
    result.tree_ = std::make_shared<const Tree>(Tree{jinja::parse_template(source)});
  } catch (const jinja::Failure& failure) {
    report(ErrorCode::kCorrupt, name, failure);
  }
  result.marks_generation_ = has_generation(result.tree_->block);
  return result;
}

jinja::Text JinjaTemplate::render_marked(const JinjaValue& context, const Rendering& rendering) const {
  try {
    return jinja::run(tree_->block, context, rendering.now);
  } catch (const jinja::Failure& failure) {
    report(ErrorCode::kUsage, name_, failure);
  }
}

std::string JinjaTemplate::render(const JinjaValue& context, const Rendering& rendering) const {
  return jinja::to_utf8(render_marked(context, rendering));
}

}  // namespace lockstep
