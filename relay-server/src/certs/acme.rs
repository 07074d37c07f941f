//! Certificates from a CA by ACME (RFC 8555): ordered, renewed when the CA says so (ARI, RFC 9773) or two thirds of
//! their life are over, and put in force without a restart.

mod account;
mod challenge;
mod config;
mod guard;
mod http;
mod order;
mod renewal_info;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use hookway_protocol::host::Host;
use instant_acme::Account;
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::ClientHello;
use rustls::sign::CertifiedKey;

use super::dns::update::Server;
use super::dns::{Responder, Zone};
use super::leaf::Leaf;
use super::{CertsError, Expiry};
use crate::shutdown::Shutdown;
use crate::store::{CertificateRow, Store, StoreError};
use challenge::Prover;
pub use config::{Binding, Config, Proof};
use guard::Guard;
use http::Https;
use order::{Failed, Ordered};

/// Let's Encrypt.
pub(crate) const PRODUCTION: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Its double for trying things out: nobody trusts what it signs, and it has nearly no limits.
pub(crate) const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// The protocol of the TLS-ALPN-01 challenge (RFC 8737 §4).
pub(crate) const ALPN_CHALLENGE: &[u8] = b"acme-tls/1";

/// How often is looked whether something is due.
const LOOKS: Duration = Duration::from_secs(1);
/// An order is given up after this time.
const ORDER_TIME: Duration = Duration::from_secs(10 * 60);
/// After a failure that may pass by itself, and after one that somebody must mend; both double.
const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(12 * 60);
const SOON_MOST: Duration = Duration::from_secs(3600);
const LATER_MOST: Duration = Duration::from_secs(86_400);
/// A certificate that is due again soon is followed by another no sooner; the one after that later, which doubles.
const QUICK: Duration = Duration::from_secs(30);
const QUICK_AGAIN: Duration = Duration::from_secs(3600);
/// Names that handshakes asked for and nobody has looked at yet.
const MAX_ASKED: usize = 100;

/// Orders, renews and keeps certificates.
pub(crate) struct Acme {
    config: Config,
    domain: Host<'static>,
    store: Arc<dyn Store>,
    https: Https,
    prover: Prover,
    /// For developers' own host names, whose DNS is not ours: by turns. Empty where the usual one will do.
    others: Vec<Prover>,
    account: tokio::sync::Mutex<Option<Account>>,
    /// What a handshake gets for a name that has no certificate.
    fallback: Arc<CertifiedKey>,
    /// By host name, or `*.DOMAIN`.
    leaves: RwLock<HashMap<String, Arc<CertifiedKey>>>,
    rows: Mutex<BTreeMap<String, Row>>,
    /// Certificates of the domain's names that are good still and not renewed: from another way of proof.
    besides: Mutex<Vec<(String, Arc<Leaf>)>>,
    owner_of: OwnerOf,
    /// Names that are wanted, and whether at once, whatever failed before.
    asked: Mutex<BTreeMap<String, bool>>,
    guard: Guard,
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acme").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What time it is at the CA, if it is there and says so; else why not.
pub(super) async fn look(config: &Config) -> Result<Option<Timestamp>, String> {
    let https = Https::new(config.ca.as_deref()).map_err(|error| error.to_string())?;
    let (status, directory, now) = https.get(&config.directory).await.map_err(|error| order::in_words(&error))?;
    let directory: serde_json::Value = serde_json::from_slice(&directory).unwrap_or_default();
    match directory.get("newOrder") {
        Some(_) => Ok(now),
        None => Err(format!("it answers {status}, and no ACME directory (RFC 8555 §7.1.1)")),
    }
}

/// Whose the endpoint is that a host name leads to.
pub(crate) type OwnerOf = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// A certificate, or one that is wanted.
#[derive(Clone, Debug)]
struct Row {
    kept: CertificateRow,
    leaf: Option<Arc<Leaf>>,
    /// When the CA is asked when to renew.
    ask_at: Timestamp,
    /// What it said last.
    window: Option<(i64, i64)>,
    /// When another was ordered last.
    tried_at: Timestamp,
    /// So many in a row came into force soon after the one before.
    quick: u32,
}

impl Row {
    fn of(kept: CertificateRow) -> Self {
        let leaf = Leaf::read(&kept.chain, &kept.key).ok().map(Arc::new);
        let [ask_at, tried_at] = [Timestamp::UNIX_EPOCH; 2];
        Self { kept, leaf, ask_at, window: None, tried_at, quick: 0 }
    }

    /// Has another ordered at once.
    fn hurry(&mut self) {
        (self.kept.due, self.kept.failures) = (Timestamp::now(), 0);
    }
}

impl Acme {
    /// What was kept is in force at once; nothing is asked of the CA yet.
    pub(super) async fn open(
        config: Config,
        domain: &Host<'static>,
        store: Arc<dyn Store>,
        owner_of: OwnerOf,
        sockets: Option<(std::net::UdpSocket, std::net::TcpListener)>,
    ) -> Result<(Arc<Self>, Option<Responder>), CertsError> {
        let mut responder = None;
        let mut others = vec![Prover::TlsAlpn(Mutex::default())];
        others.extend(config.http.then(|| Prover::Http(Mutex::default())));
        let prover = match &config.proof {
            Proof::Own(address) => {
                let zone = Arc::new(Zone::of(domain).ok_or_else(|| CertsError::NoZone(domain.to_string()))?);
                let failed = |source| CertsError::Dns { address: *address, source };
                let (udp, tcp) = sockets.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
                responder = Some(Responder::new(zone.clone(), udp, tcp).map_err(failed)?);
                Prover::Own(zone)
            }
            Proof::Update { server, key_file, wait } => Prover::Update(Server::new(server, key_file)?, *wait),
            Proof::Hook { command, wait } => Prover::Hook(command.clone(), *wait),
            Proof::Http => {
                others.clear();
                Prover::Http(Mutex::default())
            }
            Proof::TlsAlpn => {
                others.clear();
                Prover::TlsAlpn(Mutex::default())
            }
        };
        let https = Https::new(config.ca.as_deref())?;
        let fallback = fallback(domain)?;
        let acme = Self {
            https,
            prover,
            others,
            domain: domain.clone(),
            store,
            account: tokio::sync::Mutex::default(),
            fallback,
            leaves: RwLock::default(),
            rows: Mutex::default(),
            besides: Mutex::default(),
            owner_of,
            asked: Mutex::default(),
            guard: Guard::default(),
            config,
        };
        acme.reload().await?;
        Ok((Arc::new(acme), responder))
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<String, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the certificate that the relay cannot be without.
    fn main_names(&self) -> String {
        match self.config.proof {
            Proof::Http | Proof::TlsAlpn => self.domain.to_string(),
            _ => format!("{0} *.{0}", self.domain),
        }
    }

    /// Takes over what the store has: at the start, and when another process may have changed it.
    pub(crate) async fn reload(&self) -> Result<(), StoreError> {
        let kept = self.store.certificates().await?;
        let (main, now) = (self.main_names(), Timestamp::now());
        let is_ours = |row: &CertificateRow| row.names == main || self.is_wanted(&row.names);
        let (ours, others): (Vec<_>, Vec<_>) = kept.into_iter().partition(is_ours);
        let of_domain = |row: &CertificateRow| {
            row.names
                .split(' ')
                .all(|name| name == self.domain.as_str() || self.is_below(name.trim_start_matches("*.")))
        };
        for ended in others.iter().filter(|row| Leaf::read(&row.chain, &row.key).is_ok_and(|leaf| leaf.not_after < now))
        {
            self.store.remove_certificate(&ended.names).await?;
        }
        let others = others.into_iter().filter(of_domain);
        let others = others.filter_map(|row| Some((row.names, Arc::new(Leaf::read(&row.chain, &row.key).ok()?))));
        let others = others.filter(|(_, leaf)| leaf.not_after > now).collect();
        *self.besides.lock().unwrap_or_else(PoisonError::into_inner) = others;
        let mut rows = self.rows();
        for kept in ours {
            match rows.get_mut(&kept.names) {
                Some(row) if kept.asked_at.is_some_and(|at| at > row.tried_at) => row.hurry(),
                Some(_) => {}
                None => {
                    let mut row = Row::of(kept);
                    // One of another CA is good until the new one's is there.
                    if row.kept.asked_at.is_some() || row.kept.directory != self.config.directory {
                        row.hurry();
                    }
                    rows.insert(row.kept.names.clone(), row);
                }
            }
        }
        rows.entry(main.clone()).or_insert_with(|| Row::of(CertificateRow::wanted(main, &self.config.directory)));
        self.put_in_force(&rows);
        Ok(())
    }

    fn put_in_force(&self, rows: &BTreeMap<String, Row>) {
        let besides = self.besides.lock().unwrap_or_else(PoisonError::into_inner);
        let own = rows.values().filter_map(|row| Some((&row.kept.names, row.leaf.as_ref()?)));
        let all = besides.iter().map(|(names, leaf)| (names, leaf)).chain(own);
        let by_name = all.flat_map(|(names, leaf)| names.split(' ').map(|name| (name.to_owned(), leaf.key.clone())));
        *self.leaves.write().unwrap_or_else(PoisonError::into_inner) = by_name.collect();
    }

    const fn is_single(&self) -> bool {
        matches!(self.config.proof, Proof::Http | Proof::TlsAlpn)
    }

    fn is_below(&self, name: &str) -> bool {
        Host::parse(name).is_ok_and(|host| host.below(&self.domain).is_some())
    }

    /// Whether a host name leads to an endpoint and has a certificate of its own.
    fn is_wanted(&self, host: &str) -> bool {
        (self.is_single() || !self.is_below(host)) && (self.owner_of)(host).is_some()
    }

    /// What can show names to be ours; tried by turns, for a proxy before us may let one through and not the other.
    fn ways(&self, names: &str) -> &[Prover] {
        let is_own = names == self.main_names() || self.is_below(names) || self.others.is_empty();
        if is_own { std::slice::from_ref(&self.prover) } else { &self.others }
    }

    fn provers(&self) -> impl Iterator<Item = &Prover> {
        std::iter::once(&self.prover).chain(&self.others)
    }

    /// Why a host name has no certificate that is good, if it has none.
    pub(super) fn wanting(&self, host: &str) -> Option<String> {
        let rows = self.rows();
        let row = rows.get(host);
        if row.and_then(|row| row.leaf.as_ref()).is_some_and(|leaf| leaf.not_after > Timestamp::now()) {
            return None;
        }
        let why = row.map(|row| row.kept.last_error.clone()).filter(|why| !why.is_empty());
        Some(why.unwrap_or_else(|| "the certificate is being ordered".into()))
    }

    /// Has one ordered for a host name that leads to an endpoint; `at_once` where what was in its way is gone.
    pub(super) fn want(&self, host: &str, at_once: bool) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() < MAX_ASKED || asked.contains_key(host) {
            *asked.entry(host.to_owned()).or_default() |= at_once;
        }
    }

    /// What a handshake gets.
    pub(super) fn resolve(&self, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        if hello.alpn().is_some_and(|mut all| all.any(|protocol| protocol == ALPN_CHALLENGE)) {
            let name = name?;
            return self.provers().find_map(|prover| prover.certificate(name));
        }
        let host = name.map_or_else(|| self.domain.to_string(), str::to_ascii_lowercase);
        let leaves = self.leaves.read().unwrap_or_else(PoisonError::into_inner);
        let wildcard = || leaves.get(&format!("*.{}", host.split_once('.')?.1));
        if let Some(leaf) = leaves.get(&host).or_else(wildcard) {
            return Some(leaf.clone());
        }
        drop(leaves);
        if self.is_wanted(&host) {
            self.want(&host, false);
        }
        Some(self.fallback.clone())
    }

    /// The text of an HTTP-01 challenge, while the CA looks for it.
    pub(super) fn http_challenge(&self, token: &str) -> Option<String> {
        self.provers().find_map(|prover| prover.text(token))
    }

    /// Whether the CA looks at names over TLS.
    pub(super) const fn is_seen_over_tls(&self) -> bool {
        !matches!(self.config.proof, Proof::Http)
    }

    /// Wants a certificate for each name that was asked for, and none for names that are nobody's any more. Those stay in
    /// the store while they are good: who comes back has his, and a CA gives only so many for one name.
    async fn take_over(&self) {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        let is_known = |host: &String| self.rows().contains_key(host);
        let kept = if asked.keys().all(is_known) { Ok(vec![]) } else { self.store.certificates().await };
        let Ok(kept) = kept.inspect_err(|error| tracing::error!(%error, "certificates cannot be read")) else { return };
        let main = self.main_names();
        let mut rows = self.rows();
        let before = rows.len();
        rows.retain(|names, _| *names == main || self.is_wanted(names));
        let mut has_changed = rows.len() != before;
        for (host, at_once) in asked.into_iter().filter(|(host, _)| self.is_wanted(host)) {
            let row = rows.entry(host).or_insert_with_key(|host| {
                has_changed = true;
                let kept = kept.iter().find(|row| row.names == *host && row.directory == self.config.directory);
                let wanted = || CertificateRow::wanted(host.clone(), &self.config.directory);
                Row::of(kept.cloned().unwrap_or_else(wanted))
            });
            if at_once && row.leaf.is_none() && row.kept.failures > 0 {
                row.hurry();
            }
        }
        if has_changed {
            self.put_in_force(&rows);
        }
    }

    /// The certificate that ends first, of the relay's own names. A developer's may lead elsewhere by now.
    pub(super) fn expiry(&self) -> Expiry {
        let rows = self.rows();
        let main = self.main_names();
        let missing = rows.get(&main).filter(|row| row.leaf.is_none());
        if let Some(row) = missing {
            return Expiry::Missing { name: main, why: row.kept.last_error.clone() };
        }
        let own = rows.values().filter(|row| row.kept.names == main || self.is_below(&row.kept.names));
        let leaves = own.filter_map(|row| Some((row, row.leaf.as_ref()?)));
        match leaves.min_by_key(|(_, leaf)| leaf.not_after) {
            Some((row, leaf)) => Expiry::of(&row.kept.names, leaf),
            None => Expiry::Unknown,
        }
    }

    /// Orders and renews until the relay stops.
    pub(crate) async fn run(self: Arc<Self>, shutdown: Shutdown) {
        let work = async {
            let mut looks = tokio::time::interval(LOOKS);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                self.take_over().await;
                if let Some(names) = self.next_due() {
                    self.renew(&names).await;
                } else if let Some(names) = self.next_to_ask() {
                    self.ask_when(&names).await;
                }
            }
        };
        shutdown.stop_accepting.run_until_cancelled(work).await;
    }

    fn next_due(&self) -> Option<String> {
        let now = Timestamp::now();
        let main = self.main_names();
        let rows = self.rows();
        let mut orders = self.guard.orders(now);
        let owner = |row: &Row| (self.owner_of)(&row.kept.names).unwrap_or_default();
        // Whose order failed, too: a CA counts those.
        let is_new = |row: &Row| row.kept.names != main && row.leaf.is_none();
        let may = |row: &Row| !is_new(row) || orders.may_have_one(&owner(row));
        let due = rows.values().filter(|row| row.kept.due <= now && may(row));
        // What is in force goes on, whatever else is wanted.
        let due = due.min_by_key(|row| (row.kept.names != main, row.leaf.is_none(), row.kept.due))?;
        if is_new(due) {
            orders.note(now, owner(due));
        }
        Some(due.kept.names.clone())
    }

    async fn renew(&self, names: &str) {
        let tried_at = Timestamp::now();
        let (old, failures) = {
            let mut rows = self.rows();
            let Some(row) = rows.get_mut(names) else { return };
            row.tried_at = tried_at;
            // Another CA knows nothing of it.
            (row.leaf.clone().filter(|_| row.kept.directory == self.config.directory), row.kept.failures)
        };
        let ways = self.ways(names);
        let prover = &ways[failures as usize % ways.len()];
        let most = ORDER_TIME + prover.wait();
        let ordered = tokio::time::timeout(most, self.order(names, prover, old)).await;
        let ordered = ordered.unwrap_or(Err(Failed::Slow(most)));
        let now = Timestamp::now();
        let kept = {
            let mut rows = self.rows();
            let Some(row) = rows.get_mut(names) else { return };
            match ordered {
                Ok(Ordered { leaf, chain, key }) => {
                    tracing::info!(names, not_after = %leaf.not_after, "certificate in force");
                    let is_quick = row.leaf.as_ref().is_some_and(|old| leaf.follows_soon(old));
                    let quick = if is_quick { row.quick.saturating_add(1) } else { 0 };
                    let due = leaf.usual_renewal().max(floor(now, quick, &leaf));
                    let directory = self.config.directory.clone();
                    let kept =
                        CertificateRow { chain, key, due, directory, ..CertificateRow::wanted(names.into(), "") };
                    *row = Row { kept, leaf: Some(Arc::new(leaf)), ask_at: now, window: None, tried_at, quick };
                }
                Err(failed) => {
                    tracing::warn!(names, error = %failed, "no certificate; the one before, if any, stays in force");
                    row.kept.failures += 1;
                    row.kept.last_error = failed.to_string();
                    // Each way is tried soon, and waits after that as if there were no other.
                    let rounds = row.kept.failures.saturating_sub(ways.len() as u32 - 1);
                    let wait = if rounds == 0 { SOON } else { failed.wait(rounds) };
                    row.kept.due = now.checked_add(wait).unwrap_or(Timestamp::MAX);
                }
            }
            let kept = row.kept.clone();
            self.put_in_force(&rows);
            kept
        };
        if let Err(error) = self.store.put_certificate(kept, Some(tried_at)).await {
            tracing::error!(%error, "the certificate is in force, but cannot be kept");
        }
    }

    async fn order(&self, names: &str, prover: &Prover, old: Option<Arc<Leaf>>) -> Result<Ordered, Failed> {
        let hosts: Vec<String> = names.split(' ').map(str::to_owned).collect();
        for is_last in [false, true] {
            let account = self.account().await?;
            match order::order(&account, prover, &hosts, old.as_deref()).await {
                // The CA does not know the account any more: another, once.
                Err(failed) if failed.is_no_account() && !is_last => {
                    tracing::warn!(
                        directory = self.config.directory,
                        "the CA has forgotten the account; making another"
                    );
                    self.new_account().await?;
                }
                ordered => return ordered,
            }
        }
        unreachable!("the last turn returns")
    }
}

/// Before this, no other is ordered by itself after one that came at `at`: a clock that is wrong, or a CA that calls all of
/// its certificates due, must not use up what it allows.
fn floor(at: Timestamp, quick: u32, leaf: &Leaf) -> Timestamp {
    let wait = quick.checked_sub(1).map_or(QUICK, |again| QUICK_AGAIN.saturating_mul(1 << again.min(5)));
    let wait = wait.min(LATER_MOST).min(leaf.life() / 3);
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// A certificate that nobody trusts.
fn fallback(domain: &Host<'_>) -> Result<Arc<CertifiedKey>, CertsError> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([domain.to_string(), format!("*.{domain}")])?.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let certified = super::certified(vec![certificate.der().clone()], key.into());
    certified.map_err(CertsError::Made)
}

/// A random number up to this one.
pub(super) fn random(most: u64) -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    u64::from_ne_bytes(bytes) % most.saturating_add(1)
}
