//! TLS as `sslmode` asks for it, with rustls and its *ring* provider passed explicitly (never a process-wide default), and the certificate
//! hash that binds SCRAM to the TLS connection. Does not open sockets nor decide when TLS is tried: `connection` does.
//!
//! Unlike libpq, a certificate's common name is never compared with the host: only subject alternative names are.

use super::conninfo::{ConnectionInfo, CredentialFile, RootCertificates, SslMode, SslNegotiation};
use crate::error::{Error, Result};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::Digest;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// What PostgreSQL calls its protocol inside TLS.
pub(super) const ALPN: &[u8] = b"postgresql";

/// The TLS client for these settings, or `None` with `sslmode=disable`. Reads the certificate files.
///
/// # Errors
/// `LocalFile` or `ConnectionSettings` (class `Config`): a file is missing, unreadable, too open, or no certificate.
pub(super) fn connector(info: &ConnectionInfo) -> Result<Option<TlsConnector>> {
    if info.ssl_mode == SslMode::Disable {
        return Ok(None);
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = verifier(info, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| settings_error(format!("TLS versions: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match client_certificate(info)? {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| settings_error(format!("sslcert and sslkey: {error}")))?,
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = info.ssl_sni;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

/// Whether the server must have agreed on [`ALPN`].
pub(super) fn needs_alpn(info: &ConnectionInfo) -> bool {
    info.ssl_negotiation == SslNegotiation::Direct
}

/// The name to verify and to send as SNI.
///
/// # Errors
/// `ConnectionSettings`: the host is neither a DNS name nor an IP address.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|_| {
        settings_error(format!(
            "host {host:?} is no DNS name or IP address for TLS"
        ))
    })
}

fn settings_error(reason: String) -> Error {
    Error::ConnectionSettings { reason }
}

fn file_error(path: &Path, reason: impl Into<String>, source: Option<io::Error>) -> Error {
    Error::LocalFile {
        path: path.to_owned(),
        reason: reason.into(),
        source,
    }
}

/// `require` and weaker verify only if a root certificate file is there, and then the chain alone.
fn verifier(
    info: &ConnectionInfo,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>> {
    let roots = roots(&info.ssl_root_certificates)?;
    let check = match (info.ssl_mode, &roots) {
        (SslMode::VerifyFull, Some(_)) => Check::ChainAndName,
        (SslMode::VerifyFull | SslMode::VerifyCa, None) => {
            let tried = match &info.ssl_root_certificates {
                RootCertificates::DefaultFile(path) => format!("{} does not exist", path.display()),
                _ => "there is no home directory to look in".to_owned(),
            };
            return Err(settings_error(format!(
                "verifying the server's certificate needs root certificates and {tried}: write sslrootcert=FILE or sslrootcert=system"
            )));
        }
        (SslMode::VerifyCa | SslMode::Require, Some(_)) => Check::Chain,
        _ => Check::Nothing,
    };
    let chain = match roots {
        Some(roots) if check != Check::Nothing => {
            let builder =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            Some(
                builder
                    .build()
                    .map_err(|error| settings_error(format!("sslrootcert: {error}")))?,
            )
        }
        _ => None,
    };
    Ok(Arc::new(Verifier {
        check,
        chain,
        provider: provider.clone(),
    }))
}

fn roots(setting: &RootCertificates) -> Result<Option<RootCertStore>> {
    let mut store = RootCertStore::empty();
    let path = match setting {
        RootCertificates::None => return Ok(None),
        RootCertificates::DefaultFile(path) if !path.exists() => return Ok(None),
        RootCertificates::File(path) | RootCertificates::DefaultFile(path) => path,
        RootCertificates::System => {
            let loaded = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(loaded.certs);
            if store.is_empty() {
                return Err(settings_error(
                    "sslrootcert=system: the operating system has no trusted certificates"
                        .to_owned(),
                ));
            }
            return Ok(Some(store));
        }
    };
    for certificate in read_certificates(path)? {
        store.add(certificate).map_err(|error| {
            file_error(
                path,
                format!("not usable as root certificate: {error}"),
                None,
            )
        })?;
    }
    Ok(Some(store))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = fs::read(path).map_err(|error| file_error(path, "read certificates", Some(error)))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates =
        certificates.map_err(|error| file_error(path, format!("not a PEM file: {error}"), None))?;
    if certificates.is_empty() {
        return Err(file_error(path, "holds no PEM certificate", None));
    }
    Ok(certificates)
}

type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Our own certificate: if named, it must be there; at the default place it is used if it is there.
fn client_certificate(info: &ConnectionInfo) -> Result<Option<Credentials>> {
    let path = match &info.ssl_certificate {
        CredentialFile::Named(path) => path,
        CredentialFile::Default(path) if path.exists() => path,
        CredentialFile::Default(_) | CredentialFile::None => return Ok(None),
    };
    let chain = read_certificates(path)?;
    let key_path = match &info.ssl_key {
        CredentialFile::Named(path) | CredentialFile::Default(path) => path,
        CredentialFile::None => {
            return Err(settings_error("sslcert needs sslkey".to_owned()));
        }
    };
    let read = |error| file_error(key_path, "read the private key", Some(error));
    let metadata = fs::metadata(key_path).map_err(read)?;
    // As libpq: a key that root owns may be readable by its group.
    let allowed = if metadata.uid() == 0 { 0o740 } else { 0o700 };
    if metadata.permissions().mode() & 0o777 & !allowed != 0 {
        return Err(file_error(
            key_path,
            "the private key can be read by others; its permissions must be 0600 or less",
            None,
        ));
    }
    let pem = fs::read(key_path).map_err(read)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        file_error(
            key_path,
            "holds no PEM private key (encrypted keys are not supported)",
            None,
        )
    })?;
    Ok(Some((chain, key)))
}

/// What is verified of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// libpq's three degrees of verification on top of rustls' verifier. Handshake signatures are always checked.
#[derive(Debug)]
struct Verifier {
    check: Check,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            // Even unverified, it must be a certificate: its key signs the handshake.
            ParsedCertificate::try_from(end_entity)?;
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is compared last, after the chain was found good.
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForName
                | rustls::CertificateError::NotValidForNameContext { .. },
            )) if self.check == Check::Chain => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The `tls-server-end-point` binding (RFC 5929): the certificate hashed with the hash of its own signature, or SHA-256 where
/// that is MD5 or SHA-1. `None` if the signature algorithm names no such hash (Ed25519, RSA-PSS): then there is no binding.
pub(super) fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
    let sha256 = || sha2::Sha256::digest(certificate).to_vec();
    let sha384 = || sha2::Sha384::digest(certificate).to_vec();
    let sha512 = || sha2::Sha512::digest(certificate).to_vec();
    let algorithm = signature_algorithm(certificate)?;
    if algorithm == ECDSA_SHA1 {
        return Some(sha256());
    }
    let (last, family) = algorithm.split_last()?;
    match (family, last) {
        (RSA, 4 | 5 | 11) | (ECDSA_SHA2, 2) => Some(sha256()),
        (RSA, 12) | (ECDSA_SHA2, 3) => Some(sha384()),
        (RSA, 13) | (ECDSA_SHA2, 4) => Some(sha512()),
        _ => None,
    }
}

/// The object identifier in `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, … }, … }` (RFC 5280).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (certificate, _) = der_value(certificate, SEQUENCE)?;
    let (_, after_body) = der_value(certificate, SEQUENCE)?;
    let (algorithm, _) = der_value(after_body, SEQUENCE)?;
    let (oid, _) = der_value(algorithm, OBJECT_IDENTIFIER)?;
    Some(oid)
}

/// Content of the DER value at the start of `input`, and what follows it.
fn der_value(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = input.split_first()?;
    if *first != tag {
        return None;
    }
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let length = bytes
                .iter()
                .fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_binding_uses_the_hash_of_the_certificates_signature() {
        let check = |algorithm: &'static rcgen::SignatureAlgorithm, bytes: Option<usize>| {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let parameters = rcgen::CertificateParams::new(vec!["h".into()]).unwrap();
            let certificate = parameters.self_signed(&key).unwrap();
            let binding = server_end_point(certificate.der());
            assert_eq!(binding.map(|hash| hash.len()), bytes, "{algorithm:?}");
        };
        check(&rcgen::PKCS_ECDSA_P256_SHA256, Some(32));
        check(&rcgen::PKCS_ECDSA_P384_SHA384, Some(48));
        check(&rcgen::PKCS_ED25519, None);
    }

    proptest! {
        #[test]
        fn no_certificate_panics(bytes: Vec<u8>) {
            let _ = server_end_point(&bytes);
            let _ = server_end_point(&[&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff][..], &bytes].concat());
        }
    }
}
