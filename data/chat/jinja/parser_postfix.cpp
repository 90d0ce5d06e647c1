// What follows a value in a template: attributes, keys, calls, filters and tests.
#include <algorithm>
#include <array>
#include <utility>

#include "data/chat/jinja/parser_impl.h"

namespace lockstep::jinja {

ExpressionPtr Parser::parse_postfix(ExpressionPtr value) {
  while (true) {
    if (skip(".")) {
      if (sees(Token::Kind::kInteger)) {
        ExpressionPtr key = parse_number();
        value = node_of(Kind::kItem, "", std::move(value), std::move(key));
      } else {
        std::string name = take_any_name("an attribute's name");
        value = node_of(Kind::kAttribute, std::move(name), std::move(value));
      }
    } else if (skip("[")) {
      value = parse_subscript(std::move(value));
    } else if (sees("(")) {
      value = node_of(Kind::kCall, "", std::move(value));
      parse_arguments(*value);
    } else {
      return value;
    }
  }
}

ExpressionPtr Parser::parse_subscript(ExpressionPtr value) {
  std::array<ExpressionPtr, 3> parts;
  std::size_t colons = 0;
  while (!sees("]")) {
    if (sees(":") && colons < 2) {
      next();
      ++colons;
    } else {
      expect(parts[colons] == nullptr, "found {}, expected ]", shown(at()));
      parts[colons] = parse_expression();
    }
  }
  take("]");
  if (colons == 0) {
    expect(parts[0] != nullptr, "nothing stands in [], expected a key");
    return node_of(Kind::kItem, "", std::move(value), std::move(parts[0]));
  }
  return node_of(Kind::kSlice, "", std::move(value), std::move(parts[0]), std::move(parts[1]), std::move(parts[2]));
}

ExpressionPtr Parser::parse_filters(ExpressionPtr value, bool first_is_named) {
  while (true) {
    if (first_is_named || skip("|")) {
      first_is_named = false;
      value = parse_filter(std::move(value));
    } else if (value != nullptr && skip_name("is")) {
      value = parse_test(std::move(value));
    } else if (value != nullptr && sees("(")) {
      value = node_of(Kind::kCall, "", std::move(value));
      parse_arguments(*value);
    } else {
      return value;
    }
  }
}

std::string Parser::parse_dotted_name(std::string_view what) {
  std::string name = take_any_name(what);
  while (skip(".")) {
    name = fmt::format("{}.{}", name, take_any_name(what));
  }
  return name;
}

ExpressionPtr Parser::parse_filter(ExpressionPtr value) {
  std::string name = parse_dotted_name("a filter's name");
  ExpressionPtr filter = node_of(Kind::kFilter, std::move(name), std::move(value));
  if (sees("(")) {
    parse_arguments(*filter);
  }
  return filter;
}

// `x is [not] name`, with arguments in brackets or one behind it.
ExpressionPtr Parser::parse_test(ExpressionPtr value) {
  const bool is_negated = skip_name("not");
  std::string name = parse_dotted_name("a test's name");
  ExpressionPtr test = node_of(Kind::kTest, std::move(name), std::move(value));
  const bool has_argument = sees(Token::Kind::kName) || sees(Token::Kind::kString) || sees(Token::Kind::kInteger) ||
                            sees(Token::Kind::kFloat) || sees("[") || sees("{");
  if (sees("(")) {
    parse_arguments(*test);
  } else if (has_argument && !sees_name("else") && !sees_name("or") && !sees_name("and")) {
    expect(!sees_name("is"), "one test follows another, expected brackets");
    adopt(*test, parse_postfix(parse_primary()));
  }
  return is_negated ? node_of(Kind::kUnary, "not", std::move(test)) : std::move(test);
}

void Parser::parse_arguments(Expression& call) {
  take("(");
  bool is_first = true;
  while (!skip(")")) {
    if (!is_first) {
      take(",");
      if (skip(")")) {
        break;
      }
    }
    is_first = false;
    expect(!sees("*") && !sees("**"), "arguments with * are not supported");
    if (sees(Token::Kind::kName) && at(1).is(Token::Kind::kOperator, "=")) {
      std::string name = next().text;
      next();
      ExpressionPtr value = parse_expression();
      call.depth = std::max(call.depth, value->depth + 1);
      expect(call.depth <= kMaxExpressionDepth, "the expression is nested more than {} deep", kMaxExpressionDepth);
      call.named.emplace_back(std::move(name), std::move(value));
    } else {
      expect(call.named.empty(), "an argument without a name follows one with a name");
      adopt(call, parse_expression());
    }
  }
}

}  // namespace lockstep::jinja
