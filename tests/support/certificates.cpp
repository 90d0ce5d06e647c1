#include "tests/support/certificates.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>

namespace lockstep {
namespace {

struct Free {
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(BIO* file) const { BIO_free(file); }
  void operator()(X509_EXTENSION* extension) const { X509_EXTENSION_free(extension); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

void check(bool condition, const std::string& what) {
  if (!condition) {
    throw std::runtime_error("certificates: " + what);
  }
}

Owned<BIO> open(const std::filesystem::path& path, const char* mode) {
  Owned<BIO> file(BIO_new_file(path.c_str(), mode));
  check(file != nullptr, "cannot open " + path.string());
  return file;
}

void add_extension(X509* certificate, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, certificate, certificate, nullptr, nullptr, 0);
  const Owned<X509_EXTENSION> extension(X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str()));
  check(extension && X509_add_ext(certificate, extension.get(), -1) == 1, value);
}

}  // namespace

CertificateFiles make_certificate(const std::filesystem::path& folder, const std::string& name,
                                  const CertificateSpec& spec) {
  const CertificateFiles files = {folder / (name + ".pem"), folder / (name + "-key.pem")};
  const Owned<EVP_PKEY> key(EVP_EC_gen("P-256"));
  const Owned<X509> certificate(X509_new());
  check(key && certificate, "no key");
  X509_set_version(certificate.get(), X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), static_cast<long>(std::random_device()() >> 1));
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), spec.begins_s);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), spec.ends_s);
  X509_set_pubkey(certificate.get(), key.get());
  X509_NAME* const subject = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1,
                             0);
  add_extension(certificate.get(), NID_subject_alt_name, spec.alternatives);
  if (spec.issuer != nullptr) {
    const Owned<X509> issuer(PEM_read_bio_X509(open(spec.issuer->certificate, "r").get(), nullptr, nullptr, nullptr));
    const Owned<EVP_PKEY> secret(PEM_read_bio_PrivateKey(open(spec.issuer->key, "r").get(), nullptr, nullptr, nullptr));
    check(issuer && secret, "no issuer in " + spec.issuer->certificate.string());
    X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer.get()));
    check(X509_sign(certificate.get(), secret.get(), EVP_sha256()) > 0, "not signed");
  } else {
    add_extension(certificate.get(), NID_basic_constraints, "critical,CA:TRUE");
    X509_set_issuer_name(certificate.get(), subject);
    check(X509_sign(certificate.get(), key.get(), EVP_sha256()) > 0, "not signed");
  }
  check(PEM_write_bio_X509(open(files.certificate, "w").get(), certificate.get()) == 1, "not written");
  check(PEM_write_bio_PrivateKey(open(files.key, "w").get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) == 1,
        "not written");
  std::filesystem::permissions(files.key, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  return files;
}

}  // namespace lockstep
