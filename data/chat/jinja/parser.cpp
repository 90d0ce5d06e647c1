#include "data/chat/jinja/parser.h"

#include "data/chat/jinja/parser_impl.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {

std::string shown(const Token& token) {
  return token.kind == Token::Kind::kEnd    ? "the end of the template"
         : token.kind == Token::Kind::kText ? "text"
                                            : in_quotes(token.text);
}

Block Parser::run() {
  try {
    Block block = parse_block({});
    expect(at().kind == Token::Kind::kEnd, "{} has nothing to end", shown(at()));
    return block;
  } catch (Failure& failure) {
    failure.line = failure.line == 0 ? at().line : failure.line;
    throw;
  }
}

Block parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace lockstep::jinja
