// Certificates for TLS, made when a test runs.
#pragma once

#include <filesystem>
#include <string>

namespace lockstep {

struct CertificateFiles {
  std::filesystem::path certificate;
  std::filesystem::path key;
};

struct CertificateSpec {
  std::string alternatives = "IP:127.0.0.1";  // what it is for, as OpenSSL writes it: "DNS:node01,IP:10.0.0.1"
  long begins_s = -86'400;                    // from now
  long ends_s = 86'400;
  const CertificateFiles* issuer = nullptr;  // null: it signs itself
};

// Writes PEM files FOLDER/NAME.pem and FOLDER/NAME-key.pem, with a new P-256 key. Throws std::runtime_error.
[[nodiscard]] CertificateFiles make_certificate(const std::filesystem::path& folder, const std::string& name,
                                                const CertificateSpec& spec = {});

}  // namespace lockstep
