#include "launcher/job/contact.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"

namespace lockstep {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

template <typename Number>
bool parse(const std::string& text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string to_text(const Contact& contact) {
  return fmt::format("{}/{}/{}/{}/{}", contact.attempt, contact.address.token.hex(), contact.address.port,
                     fmt::join(contact.address.hosts, ","), contact.slurm_job);
}

std::optional<Contact> contact_from(const EnvironmentLookup& environment) {
  const std::optional<std::string> text = environment(kContactVariable);
  if (!text || text->empty()) {
    return {};
  }
  const std::vector<std::string> parts = split(*text, '/');
  Contact contact;
  const bool well_formed = parts.size() == 5 && parse(parts[0], contact.attempt) &&
                           parse(parts[2], contact.address.port) && !parts[3].empty();
  require(well_formed, "{} is not what lockstep launch sets; expected ATTEMPT/TOKEN/PORT/ADDRESS,.../JOB",
          kContactVariable);
  contact.address.token = control::JobToken::from_hex(parts[1]);
  contact.address.hosts = split(parts[3], ',');
  contact.slurm_job = parts[4];
  return contact;
}

std::filesystem::path contact_file(const std::filesystem::path& run) { return run / "coordinator.json"; }

void write_contact_file(const std::filesystem::path& run, const Contact& contact) {
  const std::string text = nlohmann::json{{"attempt", contact.attempt},
                                          {"slurm_job", contact.slurm_job},
                                          {"addresses", contact.address.hosts},
                                          {"port", contact.address.port},
                                          {"token", contact.address.token.hex()}}
                               .dump() +
                           "\n";
  write_file_atomic(contact_file(run), text, Readers::kOwner);
}

std::optional<Contact> read_contact_file(const std::filesystem::path& run) {
  const std::filesystem::path path = contact_file(run);
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return {};
  }
  try {
    const auto object = nlohmann::json::parse(read_file(path));
    Contact contact;
    object.at("attempt").get_to(contact.attempt);
    object.at("slurm_job").get_to(contact.slurm_job);
    object.at("addresses").get_to(contact.address.hosts);
    object.at("port").get_to(contact.address.port);
    contact.address.token = control::JobToken::from_hex(object.at("token").get<std::string>());
    return contact;
  } catch (const nlohmann::json::exception&) {
    return {};
  } catch (const Error&) {
    return {};
  }
}

std::vector<std::string> own_addresses() {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) {
    fail_errno("control: this machine's network addresses");
  }
  std::vector<std::string> found;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    const bool usable = entry->ifa_addr != nullptr && entry->ifa_addr->sa_family == AF_INET &&
                        (entry->ifa_flags & IFF_UP) != 0 && (entry->ifa_flags & IFF_LOOPBACK) == 0;
    if (!usable) {
      continue;
    }
    std::array<char, INET_ADDRSTRLEN> text{};
    const auto* const address = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
    ::inet_ntop(AF_INET, &address->sin_addr, text.data(), text.size());
    found.emplace_back(text.data());
  }
  ::freeifaddrs(list);
  if (found.empty()) {
    found.emplace_back("127.0.0.1");  // no network: then there are no other hosts either
  }
  return found;
}

}  // namespace lockstep
