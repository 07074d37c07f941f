//! A CA of the relay's own. Its name constraints (RFC 5280 §4.2.1.10) hold it to host names at or below the relay's
//! domain, and localhost.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hookway_protocol::host::Host;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

use super::CertsError;

/// How long a leaf is valid; browsers refuse more than 398 days.
const LEAF_DAYS: u32 = 90;
/// A leaf in use is replaced by then: what is good for less than 60 days is remarked upon by some.
const RENEW_AFTER: Duration = Duration::from_secs(29 * 86_400);
/// Leaves made on demand that are kept.
const MAX_LEAVES: usize = 1000;

/// The CA and the leaves it signed.
#[derive(Debug)]
pub(crate) struct SelfSigned {
    ca_path: PathBuf,
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    domain: Host<'static>,
    main: Mutex<(Arc<CertifiedKey>, Instant)>,
    /// By name, for a domain below which browsers take no wildcard.
    on_demand: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl SelfSigned {
    pub(super) fn open(data_dir: &Path, domain: &Host<'static>) -> Result<Self, CertsError> {
        let (ca_path, key_path) = (data_dir.join("ca.pem"), data_dir.join("ca-key.pem"));
        if !ca_path.exists() || !key_path.exists() {
            make_ca(&ca_path, &key_path, domain)?;
        }
        let content = |path: &Path, what, source: String| CertsError::Content {
            path: path.display().to_string(),
            what,
            source: source.into(),
        };
        let pem = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| CertsError::File { path: path.display().to_string(), source })
        };
        let key = KeyPair::from_pem(&pem(&key_path)?).map_err(|e| content(&key_path, "private key", e.to_string()))?;
        let ca = CertificateDer::from_pem_slice(pem(&ca_path)?.as_bytes())
            .map_err(|e| content(&ca_path, "certificate", e.to_string()))?;
        let issuer =
            Issuer::from_ca_cert_der(&ca, key).map_err(|e| content(&ca_path, "CA certificate", e.to_string()))?;
        let main = leaf(&issuer, &ca, main_names(domain))?;
        check(&ca, &main, domain).map_err(|source| CertsError::Ca {
            path: ca_path.display().to_string(),
            key: key_path.display().to_string(),
            domain: domain.to_string(),
            source: source.into(),
        })?;
        let main = Mutex::new((main, Instant::now()));
        Ok(Self { ca_path, ca, issuer, domain: domain.clone(), main, on_demand: Mutex::default() })
    }

    pub(super) fn ca_path(&self) -> PathBuf {
        self.ca_path.clone()
    }

    pub(super) fn leaf_for(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        if !self.domain.as_str().contains('.')
            && let Some(host) = name.and_then(|name| Host::parse(name).ok())
            && host.below(&self.domain).is_some()
        {
            return self.on_demand(&host);
        }
        Some(self.main.lock().unwrap_or_else(PoisonError::into_inner).0.clone())
    }

    pub(super) fn renew(&self) {
        let mut main = self.main.lock().unwrap_or_else(PoisonError::into_inner);
        if main.1.elapsed() < RENEW_AFTER {
            return;
        }
        match leaf(&self.issuer, &self.ca, main_names(&self.domain)) {
            Ok(leaf) => {
                *main = (leaf, Instant::now());
                self.on_demand.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            Err(error) => tracing::warn!(%error, "certificate not renewed"),
        }
    }

    fn on_demand(&self, host: &Host<'_>) -> Option<Arc<CertifiedKey>> {
        let mut leaves = self.on_demand.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get(host.as_str()) {
            return Some(leaf.clone());
        }
        if leaves.len() >= MAX_LEAVES {
            leaves.clear();
        }
        let names = vec![SanType::DnsName(host.as_str().try_into().ok()?)];
        let made = leaf(&self.issuer, &self.ca, names)
            .inspect_err(|error| tracing::debug!(%error, %host, "no certificate made"))
            .ok()?;
        leaves.insert(host.to_string(), made.clone());
        Some(made)
    }
}

/// Whether who trusts the CA takes the leaf: a CA kept from another domain may not speak for this one.
fn check(ca: &CertificateDer<'static>, leaf: &CertifiedKey, domain: &Host<'_>) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
    let name = ServerName::try_from(domain.as_str().to_owned());
    let name = name.map_err(|error| rustls::Error::General(error.to_string()))?;
    verifier.verify_server_cert(&leaf.cert[0], &[], &name, &[], UnixTime::now()).map(drop)
}

fn make_ca(ca_path: &Path, key_path: &Path, domain: &Host<'_>) -> Result<(), CertsError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("Hookway relay CA for {domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        // Names only: BoringSSL, and so gRPC, refuses a CA with constraints on addresses.
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(domain.to_string()),
            GeneralSubtree::DnsName("localhost".into()),
        ],
        excluded_subtrees: vec![],
    });
    let year = i32::from(jiff::Zoned::now().year());
    params.not_before = rcgen::date_time_ymd(year - 1, 1, 1);
    params.not_after = rcgen::date_time_ymd(year + 10, 1, 1);
    let ca = params.self_signed(&key)?;
    write(key_path, &key.serialize_pem(), 0o600)?;
    write(ca_path, &ca.pem(), 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    written
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|source| CertsError::File { path: path.display().to_string(), source })
}

/// What the main leaf covers. Without a dot in the domain its wildcard would be refused.
fn main_names(domain: &Host<'_>) -> Vec<SanType> {
    let mut names = vec![domain.to_string(), "localhost".into()];
    if domain.as_str().contains('.') {
        names.push(format!("*.{domain}"));
    }
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| Some(SanType::DnsName(name.try_into().ok()?)))
        .chain([IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)].map(SanType::IpAddress))
        .collect()
}

fn leaf(
    issuer: &Issuer<'static, KeyPair>,
    ca: &CertificateDer<'static>,
    names: Vec<SanType>,
) -> Result<Arc<CertifiedKey>, CertsError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Hookway relay");
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let day = |days: i64| {
        let day = jiff::Zoned::now().date().saturating_add(jiff::Span::new().days(days));
        rcgen::date_time_ymd(day.year().into(), day.month() as u8, day.day() as u8)
    };
    params.not_before = day(-1);
    params.not_after = day(LEAF_DAYS.into());
    let signed = params.signed_by(&key, issuer)?;
    let private = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    super::certified(vec![signed.der().clone(), ca.clone()], private).map_err(|error| CertsError::Content {
        path: "a new leaf".into(),
        what: "key",
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, domain: &'static str) -> SelfSigned {
        SelfSigned::open(folder, &Host::parse(domain).expect("a host")).expect("a CA")
    }

    #[test]
    fn the_ca_stays_the_same_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let first = open(folder.path(), "hooks.test").ca;
        assert_eq!(open(folder.path(), "hooks.test").ca, first);
        let mode = folder.path().join("ca-key.pem").metadata().expect("the key's file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_ca_of_another_domain_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        open(folder.path(), "hooks.test");
        let other = Host::parse("other.test").expect("a host");
        let error = SelfSigned::open(folder.path(), &other).expect_err("no client would take its leaves");
        assert!(error.to_string().contains("other.test"), "{error}");
        open(folder.path(), "deeper.hooks.test");
    }

    #[test]
    fn a_leaf_a_name_below_localhost_and_a_bounded_number() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = open(folder.path(), "localhost");
        let demo = own.leaf_for(Some("demo.localhost")).expect("a leaf");
        assert!(Arc::ptr_eq(&demo, &own.leaf_for(Some("demo.localhost")).expect("the same")));
        assert!(!Arc::ptr_eq(&demo, &own.leaf_for(Some("localhost")).expect("another")));
        assert!(own.on_demand.lock().expect("unpoisoned").len() == 1);
    }
}
