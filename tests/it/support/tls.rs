//! Certificates for TLS tests: an authority that nobody else trusts, and servers' certificates from it.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A certificate authority of one test.
pub(crate) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = parameters(&[], "Walden test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
        ];
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.self_signed(&key).expect("sign the authority").pem();
        let issuer = Issuer::new(params, key);
        Self {
            certificate,
            issuer,
        }
    }

    /// The authority's own certificate, as PEM: what `sslrootcert` points at.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Writes a certificate for these host names and addresses, and its key, readable by the owner only.
    pub(crate) fn issue(&self, names: &[&str], certificate: &Path, key: &Path) {
        let pair = KeyPair::generate().expect("make a key");
        let params = parameters(names, "Walden test server");
        let signed = params
            .signed_by(&pair, &self.issuer)
            .expect("sign a certificate");
        std::fs::write(certificate, signed.pem()).expect("write a certificate");
        std::fs::write(key, pair.serialize_pem()).expect("write a key");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(key, private).expect("keep a key private");
    }
}

fn parameters(names: &[&str], common_name: &str) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names of hosts");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}
