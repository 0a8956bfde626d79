//! TLS by rustls with libpq's rules for what each `sslmode` verifies and which files are read.
//!
//! The stream itself is `tokio-postgres-rustls`: it takes any rustls configuration, does SCRAM channel binding and
//! adds no crypto provider (`rustls-tokio-postgres` brings more crates and its own choice of roots).

use crate::connect::conninfo::{RootCert, SslMode, TlsFile, TlsSettings, TlsVersion};
use crate::error::{Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{self, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme, version,
};
use std::sync::Arc;
use std::{fs, io};
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::Certificate;
use x509_cert::certificate::Version;
use x509_cert::der::oid::db::{rfc4519::COMMON_NAME, rfc5280::ID_CE_SUBJECT_ALT_NAME};
use x509_cert::der::{Decode, Encode};

/// Build the connector. Reads the certificate files at every call, so that a reconnect uses renewed ones. Blocks while
/// reading.
pub(crate) fn make_connector(settings: &TlsSettings) -> Result<MakeRustlsConnect> {
    // Given explicitly, because rustls' process-wide default belongs to the application that loads this module.
    let provider = Arc::new(crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let all = [(TlsVersion::V12, &version::TLS12), (TlsVersion::V13, &version::TLS13)];
    let allowed = settings.min_version..=settings.max_version;
    let versions: Vec<_> = all.into_iter().filter(|(v, _)| allowed.contains(v)).map(|(_, version)| version).collect();
    // For `disable` no file is read: the driver requires a connector, but does not use it.
    let is_used = settings.mode != SslMode::Disable;
    let roots = if is_used { load_roots(settings)? } else { None };
    let verifier = Verifier { roots, checks_name: settings.mode == SslMode::VerifyFull, algorithms };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| Error::options("ssl_min_protocol_version", "", error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let identity = if is_used { load_identity(settings)? } else { None };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| Error::options("sslkey", "", format!("does not fit sslcert: {error}")))?,
    };
    config.enable_sni = settings.has_sni;
    if settings.is_direct {
        // The server requires ALPN for a direct handshake. In other cases ALPN is omitted, for TLS-terminating proxies.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}

/// The certificates to trust, or `None` when the chain is not verified.
fn load_roots(settings: &TlsSettings) -> Result<Option<Roots>> {
    let mut store = RootCertStore::empty();
    let file = match &settings.root {
        RootCert::System => {
            let found = rustls_native_certs::load_native_certs();
            // Certificate stores may contain certificates that cannot be parsed. It suffices that some remain.
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let reason = "the system has no trusted certificates; install ca-certificates or name a file";
                return Err(Error::options("sslrootcert", "system", reason));
            }
            return Ok(Some(Roots { store, certs: Vec::new() }));
        }
        RootCert::File(file) => file.as_ref().filter(|file| file.is_explicit || file.path.exists()),
    };
    let Some(file) = file else {
        if settings.mode < SslMode::VerifyCa {
            return Ok(None);
        }
        return Err(Error::options(
            "sslrootcert",
            "",
            format!(
                "sslmode={} needs root certificates: name a file, or \"system\" for the system's, \
                 or create ~/.postgresql/root.crt",
                settings.mode
            ),
        ));
    };
    // A file named by the user must exist. libpq would silently verify nothing instead.
    let certs = load_certs("sslrootcert", file)?;
    for cert in &certs {
        store.add(cert.clone()).map_err(|error| bad_file("sslrootcert", file, &error))?;
    }
    Ok(Some(Roots { store, certs }))
}

/// The client's certificate chain and key, if a certificate file is named or is at its default place.
fn load_identity(settings: &TlsSettings) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
    let Some(cert) = settings.cert.as_ref().filter(|file| file.is_explicit || file.path.exists()) else {
        return Ok(None);
    };
    let chain = load_certs("sslcert", cert)?;
    let Some(key) = &settings.key else {
        return Err(Error::options("sslkey", "", "sslcert is given, but no private key for it"));
    };
    check_key_rights(key)?;
    match PrivateKeyDer::from_pem_file(&key.path) {
        Ok(private) => Ok(Some((chain, private))),
        Err(pem::Error::NoItemsFound) => {
            let reason = "contains no private key in PEM format without encryption; \
                          decrypt it with: openssl pkey -in encrypted.key -out plain.key";
            Err(Error::options("sslkey", key.path.to_string_lossy(), reason))
        }
        Err(error) => Err(bad_file("sslkey", key, &error)),
    }
}

fn load_certs(option: &str, file: &TlsFile) -> Result<Vec<CertificateDer<'static>>> {
    let certs = CertificateDer::pem_file_iter(&file.path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad_file(option, file, &error))?;
    if certs.is_empty() {
        return Err(Error::options(option, file.path.to_string_lossy(), "contains no certificate in PEM format"));
    }
    Ok(certs)
}

/// libpq's rule: only the owner may have access; the group may read if the owner is root (as with mounted secrets).
fn check_key_rights(key: &TlsFile) -> Result<()> {
    let metadata = fs::metadata(&key.path).map_err(|error| bad_file("sslkey", key, &error))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
        if metadata.mode() & forbidden != 0 {
            let reason = "group or others have access to the private key; run chmod 0600 on it \
                          (0640 is allowed when root owns it)";
            return Err(Error::options("sslkey", key.path.to_string_lossy(), reason));
        }
    }
    let _ = metadata;
    Ok(())
}

fn bad_file(option: &str, file: &TlsFile, error: &dyn std::fmt::Display) -> Error {
    Error::options(option, file.path.to_string_lossy(), format!("cannot be used: {error}"))
}

#[derive(Debug)]
struct Roots {
    store: RootCertStore,
    certs: Vec<CertificateDer<'static>>,
}

/// libpq's verification: nothing, the chain, or the chain and the name.
#[derive(Debug)]
struct Verifier {
    roots: Option<Roots>,
    checks_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let parsed = parse(end_entity)?;
        if parsed.tbs_certificate.version == Version::V1 {
            return Err(CertificateError::Other(OtherError(Arc::new(OldVersion))).into());
        }
        let cert = ParsedCertificate::try_from(end_entity)?;
        let chain =
            verify_server_cert_signed_by_trust_anchor(&cert, &roots.store, intermediates, now, self.algorithms.all);
        if chain.is_err() && roots.certs.iter().any(|trusted| trusted == end_entity) {
            // A self-signed server certificate that is itself in the root file, as PostgreSQL's manual makes them.
            // webpki rejects it because it is a CA certificate; OpenSSL, and therefore libpq, accepts it.
            check_validity(&parsed, now)?;
        } else {
            chain?;
        }
        if self.checks_name
            && let Err(error) = verify_server_name(&cert, server_name)
            && !has_common_name(&parsed, &server_name.to_str())
        {
            return Err(error);
        }
        Ok(ServerCertVerified::assertion())
    }

    // The handshake signature is checked even when the certificate is not, because channel binding relies on it.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let parsed = parse(cert)?;
        if parsed.tbs_certificate.version != Version::V1 {
            return crypto::verify_tls13_signature(message, cert, dss, &self.algorithms);
        }
        // webpki does not parse version 1 certificates, which `openssl x509 -req` creates. The signature check needs
        // only their key.
        let spki =
            parsed.tbs_certificate.subject_public_key_info.to_der().map_err(|_| CertificateError::BadEncoding)?;
        let spki = SubjectPublicKeyInfoDer::from(spki.as_slice());
        crypto::verify_tls13_signature_with_raw_key(message, &spki, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn parse(cert: &CertificateDer<'_>) -> Result<Certificate, rustls::Error> {
    Certificate::from_der(cert).map_err(|_| CertificateError::BadEncoding.into())
}

fn check_validity(cert: &Certificate, now: UnixTime) -> Result<(), rustls::Error> {
    let validity = &cert.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// libpq's fallback for a certificate without alternative names: the common name, `*.` standing for one label.
fn has_common_name(cert: &Certificate, host: &str) -> bool {
    let certificate = &cert.tbs_certificate;
    if certificate.extensions.iter().flatten().any(|extension| extension.extn_id == ID_CE_SUBJECT_ALT_NAME) {
        return false;
    }
    let mut names = certificate.subject.0.iter().flat_map(|relative| relative.0.iter());
    let name = names.find(|attribute| attribute.oid == COMMON_NAME).map(|attribute| attribute.value.value());
    name.and_then(|name| std::str::from_utf8(name).ok()).is_some_and(|name| name_matches(name, host))
}

fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(domain) = pattern.strip_prefix("*.") else { return false };
    host.parse::<std::net::IpAddr>().is_err()
        && host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain))
}

/// Why a version 1 certificate is rejected.
#[derive(Debug, thiserror::Error)]
#[error("it is of X.509 version 1")]
struct OldVersion;

/// The rustls error somewhere inside an error of the driver.
pub(crate) fn find_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    // `io::Error::source` skips the error it wraps.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(wrapped) => find_cause(wrapped),
        None => error.source().and_then(find_cause),
    }
}

/// Which verification failed, and what to do about it.
pub(crate) fn explain(error: &rustls::Error, settings: &TlsSettings) -> (String, String) {
    use CertificateError as Cert;
    let roots = match &settings.root {
        RootCert::System => "the system's certificates".to_owned(),
        RootCert::File(file) => file.as_ref().map_or_else(String::new, |file| file.path.display().to_string()),
    };
    let certificate = |what: &str| format!("the server's certificate {what}");
    let (what, hint) = match error {
        rustls::Error::InvalidCertificate(cause) => match cause {
            Cert::UnknownIssuer => (
                certificate("is not signed by a trusted authority"),
                format!("trusted is what is in {roots}; set sslrootcert to the file with the right authority"),
            ),
            Cert::NotValidForName | Cert::NotValidForNameContext { .. } => {
                let name = match cause {
                    Cert::NotValidForNameContext { expected, .. } => expected.to_str().into_owned(),
                    _ => "the host".to_owned(),
                };
                (
                    certificate(&format!("is not for {name}")),
                    "connect by a name in the certificate, or reissue it with that name as subjectAltName, \
                     or use sslmode=verify-ca to check the chain only"
                        .to_owned(),
                )
            }
            Cert::Expired | Cert::ExpiredContext { .. } => {
                (certificate("has expired"), "renew it, or correct this machine's clock".to_owned())
            }
            Cert::NotValidYet | Cert::NotValidYetContext { .. } => {
                (certificate("is not valid yet"), "correct this machine's clock".to_owned())
            }
            Cert::Other(OtherError(cause)) => (
                certificate(&format!("cannot be verified: {cause}")),
                "reissue it as X.509 version 3 with the host's name as subjectAltName".to_owned(),
            ),
            cause => (
                certificate(&format!("is not accepted: {cause}")),
                "reissue it as X.509 version 3 with the host's name as subjectAltName".to_owned(),
            ),
        },
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied,
        ) => (
            format!("the server refuses the client certificate: {error}"),
            "check sslcert and sslkey against the server's ssl_ca_file".to_owned(),
        ),
        rustls::Error::InvalidMessage(_) => {
            ("the answer is not TLS".to_owned(), "check that host and port are those of a PostgreSQL server".to_owned())
        }
        error => (
            error.to_string(),
            "TLS 1.2 and 1.3 are offered; check the server's ssl_min_protocol_version and ssl_ciphers".to_owned(),
        ),
    };
    (format!("TLS with sslmode={} failed: {what}", settings.mode), hint)
}
