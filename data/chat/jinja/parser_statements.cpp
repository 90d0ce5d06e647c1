// Statements of a template: blocks, tags, and what is assigned to.
#include <algorithm>
#include <array>
#include <utility>

#include "data/chat/jinja/parser_impl.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

constexpr int kMaxBlocks = 60;

}  // namespace

Block Parser::parse_block(Ends ends) {
  const Nested nested(blocks_, kMaxBlocks);
  Block block;
  while (!sees(Token::Kind::kEnd)) {
    auto statement = std::make_unique<Statement>();
    statement->line = at().line;
    if (sees(Token::Kind::kText)) {
      statement->text = to_text(next().text);
    } else if (sees(Token::Kind::kPrintBegin)) {
      next();
      statement->kind = Statement::Kind::kPrint;
      statement->expression = parse_tuple(true, false);
      expect(sees(Token::Kind::kPrintEnd), "found {}, expected }}}}", shown(at()));
      next();
    } else {
      const bool is_end = at(1).kind == Token::Kind::kName && std::ranges::find(ends, at(1).text) != ends.end();
      if (is_end) {
        return block;
      }
      next();
      statement = parse_tag();
    }
    block.push_back(std::move(statement));
  }
  expect(ends.size() == 0, "the template ends inside a block, expected {{% {} %}}",
         ends.size() == 0 ? "" : *(ends.end() - 1));
  return block;
}

// A block's content, up to one of the tags `ends`, whose "{%" and name are taken; at() is what follows.
Block Parser::parse_body(Ends ends) {
  take_block_end();
  Block block = parse_block(ends);
  next();
  next();
  return block;
}

std::unique_ptr<Statement> Parser::parse_tag() {
  auto statement = std::make_unique<Statement>();
  statement->line = at().line;
  const std::string tag = take_any_name("the name of a tag");
  using enum Statement::Kind;
  if (tag == "if") {
    parse_if(*statement);
  } else if (tag == "for") {
    parse_for(*statement);
  } else if (tag == "set") {
    parse_set(*statement);
  } else if (tag == "macro") {
    parse_macro(*statement);
  } else if (tag == "break" || tag == "continue") {
    expect(loops_ > 0, "{} stands outside of a loop", tag);
    statement->kind = tag == "break" ? kBreak : kContinue;
  } else if (tag == "filter") {
    statement->kind = kFilter;
    statement->expression = parse_filters(nullptr, true);
    statement->body = parse_body({"endfilter"});
  } else if (tag == "generation") {
    statement->kind = kGeneration;
    statement->body = parse_body({"endgeneration"});
  } else {
    refuse("the tag {} is not supported here", in_quotes(tag));
  }
  take_block_end();
  return statement;
}

void Parser::parse_if(Statement& statement) {
  statement.kind = Statement::Kind::kIf;
  while (true) {
    ExpressionPtr condition = parse_tuple(false, false);
    Block body = parse_body({"elif", "else", "endif"});
    statement.branches.emplace_back(std::move(condition), std::move(body));
    const std::string& end = tokens_[position_ - 1].text;
    if (end == "else") {
      statement.otherwise = parse_body({"endif"});
    }
    if (end != "elif") {
      return;
    }
  }
}

void Parser::parse_for(Statement& statement) {
  statement.kind = Statement::Kind::kFor;
  statement.target = parse_target(true);
  take_name("in");
  statement.expression = parse_tuple(false, false);
  if (skip_name("if")) {
    statement.condition = parse_expression();
  }
  expect(!sees_name("recursive"), "recursive loops are not supported");
  ++loops_;
  statement.body = parse_body({"else", "endfor"});
  --loops_;
  if (tokens_[position_ - 1].text == "else") {
    statement.otherwise = parse_body({"endfor"});
  }
}

void Parser::parse_set(Statement& statement) {
  statement.target = parse_target(true);
  if (skip("=")) {
    statement.kind = Statement::Kind::kSet;
    statement.expression = parse_tuple(true, false);
    return;
  }
  statement.kind = Statement::Kind::kSetBlock;
  expect(statement.target.parts.empty(), "a block is set to a tuple, expected one name");
  if (sees("|")) {
    statement.expression = parse_filters(nullptr);
  }
  statement.body = parse_body({"endset"});
}

void Parser::parse_macro(Statement& statement) {
  statement.kind = Statement::Kind::kMacro;
  statement.name = take_any_name("the macro's name");
  take("(");
  while (!skip(")")) {
    if (!statement.parameters.empty()) {
      take(",");
    }
    Parameter parameter{take_any_name("a parameter's name"), nullptr};
    if (skip("=")) {
      parameter.otherwise = parse_expression();
    }
    expect(parameter.otherwise != nullptr || statement.parameters.empty() ||
               statement.parameters.back().otherwise == nullptr,
           "the parameter {} follows one with a default and has none", parameter.name);
    statement.parameters.push_back(std::move(parameter));
  }
  const int loops = std::exchange(loops_, 0);
  statement.body = parse_body({"endmacro"});
  loops_ = loops;
}

Target Parser::parse_one_target() {
  const Nested nested(nesting_, kMaxNesting);
  if (skip("(")) {
    Target target = parse_target(true);
    take(")");
    return target;
  }
  Target target{take_any_name("a name to assign to"), {}, {}};
  constexpr std::array<std::string_view, 9> kReserved = {"true", "false", "none", "True", "False",
                                                         "None", "not",   "in",   "if"};
  expect(std::ranges::find(kReserved, target.name) == kReserved.end(), "{} cannot be assigned to", target.name);
  if (skip(".")) {
    target.attribute = take_any_name("an attribute's name");
  }
  expect(!sees("["), "found {}, expected a name or an attribute of a namespace to assign to", shown(at()));
  return target;
}

Target Parser::parse_target(bool may_be_tuple) {
  Target first = parse_one_target();
  if (!may_be_tuple || !sees(",")) {
    return first;
  }
  Target tuple;
  tuple.parts.push_back(std::move(first));
  while (skip(",")) {
    if (!sees(Token::Kind::kName) && !sees("(")) {
      break;
    }
    if (sees_name("in")) {
      break;
    }
    tuple.parts.push_back(parse_one_target());
  }
  return tuple;
}

}  // namespace lockstep::jinja
