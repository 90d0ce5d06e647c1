// Expressions of a template: operators, by how strongly they bind, and what they stand between.
#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "data/chat/jinja/parser_impl.h"

namespace lockstep::jinja {

ExpressionPtr Parser::parse_expression(bool with_if) {
  const Nested nested(nesting_, kMaxNesting);
  ExpressionPtr value = parse_or();
  while (with_if && skip_name("if")) {
    ExpressionPtr condition = parse_or();
    ExpressionPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    value = node_of(Kind::kIf, "", std::move(condition), std::move(value), std::move(otherwise));
  }
  return value;
}

ExpressionPtr Parser::parse_or() {
  ExpressionPtr left = parse_and();
  while (skip_name("or")) {
    left = node_of(Kind::kOr, "", std::move(left), parse_and());
  }
  return left;
}

ExpressionPtr Parser::parse_and() {
  ExpressionPtr left = parse_not();
  while (skip_name("and")) {
    left = node_of(Kind::kAnd, "", std::move(left), parse_not());
  }
  return left;
}

ExpressionPtr Parser::parse_not() {
  const Nested nested(nesting_, kMaxNesting);
  return skip_name("not") ? node_of(Kind::kUnary, "not", parse_not()) : parse_compare();
}

ExpressionPtr Parser::parse_compare() {
  constexpr std::array<std::string_view, 6> kOperators = {"==", "!=", "<", "<=", ">", ">="};
  ExpressionPtr first = parse_sum();
  std::vector<std::string> names;
  std::vector<ExpressionPtr> others;
  while (true) {
    if (sees(Token::Kind::kOperator) && std::ranges::find(kOperators, at().text) != kOperators.end()) {
      names.push_back(next().text);
    } else if (sees_name("not") && at(1).is(Token::Kind::kName, "in")) {
      position_ += 2;
      names.emplace_back("not in");
    } else if (skip_name("in")) {
      names.emplace_back("in");
    } else {
      break;
    }
    others.push_back(parse_sum());
  }
  if (names.empty()) {
    return first;
  }
  ExpressionPtr compare = node_of(Kind::kCompare, "", std::move(first));
  for (ExpressionPtr& other : others) {
    adopt(*compare, std::move(other));
  }
  compare->names = std::move(names);
  return compare;
}

ExpressionPtr Parser::parse_sum() {
  ExpressionPtr left = parse_concat();
  while (sees("+") || sees("-")) {
    std::string name = next().text;
    left = node_of(Kind::kBinary, std::move(name), std::move(left), parse_concat());
  }
  return left;
}

ExpressionPtr Parser::parse_concat() {
  ExpressionPtr first = parse_product();
  if (!sees("~")) {
    return first;
  }
  ExpressionPtr all = node_of(Kind::kConcat, "", std::move(first));
  while (skip("~")) {
    adopt(*all, parse_product());
  }
  return all;
}

ExpressionPtr Parser::parse_product() {
  ExpressionPtr left = parse_power();
  while (sees("*") || sees("/") || sees("//") || sees("%")) {
    std::string name = next().text;
    left = node_of(Kind::kBinary, std::move(name), std::move(left), parse_power());
  }
  return left;
}

ExpressionPtr Parser::parse_power() {
  ExpressionPtr left = parse_unary();
  while (skip("**")) {
    left = node_of(Kind::kBinary, "**", std::move(left), parse_unary());
  }
  return left;
}

ExpressionPtr Parser::parse_unary(bool with_filters) {
  const Nested nested(nesting_, kMaxNesting);
  ExpressionPtr value;
  if (sees("-") || sees("+")) {
    std::string name = next().text;
    value = node_of(Kind::kUnary, std::move(name), parse_unary(false));
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  return with_filters ? parse_filters(std::move(value)) : std::move(value);
}

ExpressionPtr Parser::parse_primary() {
  if (sees(Token::Kind::kName)) {
    return parse_name();
  }
  if (sees(Token::Kind::kString)) {
    ExpressionPtr value = node(Kind::kConstant);
    std::string text;
    while (sees(Token::Kind::kString)) {
      text += next().text;
    }
    value->value = Value::text(text);
    return value;
  }
  if (sees(Token::Kind::kInteger) || sees(Token::Kind::kFloat)) {
    return parse_number();
  }
  if (skip("(")) {
    ExpressionPtr value = parse_tuple(true, true);
    take(")");
    return value;
  }
  if (skip("[")) {
    return parse_list();
  }
  if (skip("{")) {
    return parse_dict();
  }
  refuse("found {}, expected an expression", shown(at()));
}

ExpressionPtr Parser::parse_name() {
  const std::string& name = at().text;
  ExpressionPtr value = node(Kind::kConstant);
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    value->value = name == "true" || name == "True";
  } else if (name != "none" && name != "None") {
    value->kind = Kind::kName;
    value->name = name;
  }
  next();
  return value;
}

ExpressionPtr Parser::parse_number() {
  ExpressionPtr value = node(Kind::kConstant);
  const Token& token = next();
  const char* const end = token.text.data() + token.text.size();
  if (token.kind == Token::Kind::kFloat) {
    double number = 0;
    expect(std::from_chars(token.text.data(), end, number).ec == std::errc(), "the number {} does not fit", token.text);
    value->value = number;
  } else {
    std::int64_t number = 0;
    expect(std::from_chars(token.text.data(), end, number).ec == std::errc(), "the number {} does not fit", token.text);
    expect(token.text == "0" || token.text.front() != '0' || number == 0, "the number {} begins with 0", token.text);
    value->value = number;
  }
  return value;
}

ExpressionPtr Parser::parse_list() {
  ExpressionPtr list = node(Kind::kList);
  while (!skip("]")) {
    if (!list->operands.empty()) {
      take(",");
      if (skip("]")) {
        break;
      }
    }
    adopt(*list, parse_expression());
  }
  return list;
}

ExpressionPtr Parser::parse_dict() {
  ExpressionPtr dict = node(Kind::kDict);
  while (!skip("}")) {
    if (!dict->operands.empty()) {
      take(",");
      if (skip("}")) {
        break;
      }
    }
    adopt(*dict, parse_expression());
    take(":");
    adopt(*dict, parse_expression());
  }
  return dict;
}

// One expression, or a tuple of some where there are commas, or the empty one in brackets.
ExpressionPtr Parser::parse_tuple(bool with_if, bool in_brackets) {
  if (in_brackets && sees(")")) {
    return node(Kind::kTuple);
  }
  ExpressionPtr first = parse_expression(with_if);
  if (!sees(",")) {
    return first;
  }
  ExpressionPtr tuple = node_of(Kind::kTuple, "", std::move(first));
  while (skip(",")) {
    if (sees(")") || sees(Token::Kind::kPrintEnd) || sees(Token::Kind::kBlockEnd)) {
      break;
    }
    adopt(*tuple, parse_expression(with_if));
  }
  return tuple;
}

}  // namespace lockstep::jinja
