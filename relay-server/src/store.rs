//! What survives a restart: tokens, who owns which endpoint, and the deliveries that wait.
//!
//! Every change is answered after it is on disk. Another process may change the same store (`hookway-relay token`);
//! [`Store::version`] tells when one did.

mod audit;
#[cfg(test)]
mod conformance;
mod sqlite;
mod token;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hookway_protocol::host::EndpointName;
use hookway_protocol::id::DeliveryId;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

pub use audit::{AuditRow, By, Note, Via};
pub use token::TokenRow;

use crate::protection::{Protection, Shown};

/// What a store answers, once it is so.
pub type Later<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Keeps what survives a restart. Each call that changes something is all or nothing, and is answered when the change
/// will be there after a power cut. What somebody changes has its line in the audit log, written together with it.
pub trait Store: std::fmt::Debug + Send + Sync {
    /// The same store, acted on by somebody else: the audit log names him.
    fn acting(&self, by: By) -> Arc<dyn Store>;
    /// Adds a line to the audit log, for what the store does not see.
    fn note(&self, note: Note) -> Later<'_, ()>;
    /// Lines of the audit log before that one, or the newest; so many at most, newest first.
    fn audit_log(&self, before: Option<u64>, most: usize) -> Later<'_, Vec<AuditRow>>;
    /// The key of the first run, which is this one when there is none yet.
    fn kept_key(&self, fresh: [u8; 32]) -> Later<'_, [u8; 32]>;
    /// Changes when another process has changed the store.
    fn version(&self) -> Later<'_, i64>;

    /// Keeps a new token.
    fn insert_token(&self, row: TokenRow) -> Later<'_, ()>;
    /// All tokens, revoked ones too, oldest first.
    fn tokens(&self) -> Later<'_, Vec<TokenRow>>;
    /// The token with this hash, though it may be revoked or expired.
    fn token(&self, hash: [u8; 32]) -> Later<'_, Option<TokenRow>>;
    /// Revokes the tokens of that id or name, and says which.
    fn revoke_tokens(&self, id_or_name: &str, at: Timestamp) -> Later<'_, Vec<TokenRow>>;

    /// Gives a name to an owner unless another has or had it, or he would have more than `most`, those that are held for
    /// him among them.
    fn claim_endpoint(&self, name: &EndpointName, owner: &str, most: usize, at: Timestamp) -> Later<'_, Claimed>;
    /// Keeps what is known of a listener, in place of what was known before; nothing when its endpoint is no more.
    fn put_listener(&self, row: ListenerRow) -> Later<'_, ()>;
    /// All listeners.
    fn listeners(&self) -> Later<'_, Vec<ListenerRow>>;
    /// Forgets a listener.
    fn remove_listener(&self, endpoint: EndpointId, name: &str) -> Later<'_, ()>;
    /// Protects an endpoint in place of what protected it before, and says whether there is such an endpoint.
    fn put_protection(&self, name: &EndpointName, protection: Protection) -> Later<'_, bool>;
    /// All endpoints by name.
    fn endpoints(&self) -> Later<'_, Vec<EndpointRow>>;
    /// Makes a name free, for its owner alone until `held`, if `of` has it where that says who, and says whether it was
    /// not free. A name that is held already is held until then. Its listeners and domains
    /// are forgotten, and deliveries that wait for it become dead letters: whoever has the name next is another
    /// endpoint.
    fn release_endpoint(
        &self,
        name: &EndpointName,
        of: Option<EndpointId>,
        at: Timestamp,
        held: Timestamp,
    ) -> Later<'_, bool>;
    /// Leads a host name to an endpoint, wherever it led before; nowhere, when the endpoint is no more.
    fn put_domain(&self, row: DomainRow) -> Later<'_, ()>;
    /// All host names that are developers' own.
    fn domains(&self) -> Later<'_, Vec<DomainRow>>;
    /// Forgets a host name, if it leads to `of` where that says whereto, and says whether it did.
    fn remove_domain(&self, host: &str, of: Option<EndpointId>) -> Later<'_, bool>;

    /// Keeps a delivery, the last in the order of acceptance.
    fn push(&self, row: NewDelivery, payload: Payload) -> Later<'_, Seq>;
    /// All that are kept, dead letters too, in the order of acceptance: as it was when asked.
    fn deliveries(&self) -> Later<'_, Vec<QueuedRow>>;
    /// Some of those that are kept, in the order of acceptance.
    fn list(&self, listing: Listing) -> Later<'_, Vec<QueuedRow>>;
    /// The newest dead letters of an endpoint, so many at most, newest first.
    fn dead_letters(&self, endpoint: EndpointId, most: usize) -> Later<'_, Vec<QueuedRow>>;
    /// The delivery itself; `None` when it is not there any more.
    fn payload(&self, seq: Seq) -> Later<'_, Option<Payload>>;
    /// Notes that these are about to be handed over, or after all were not. A relay that is killed then knows which
    /// may have reached the app.
    fn mark_handed(&self, all: Vec<Seq>, handed: bool) -> Later<'_, ()>;
    /// Notes what came of handing one over: it is done and goes, is tried again, or is dead.
    fn settle(&self, seq: Seq, settled: Settled) -> Later<'_, ()>;
    /// Makes dead letters wait again, as if they had just come, and says which.
    fn revive(&self, which: Dead, at: Timestamp) -> Later<'_, Vec<Seq>>;
    /// These were for a listener, and are for whoever comes.
    fn for_anyone(&self, all: Vec<Seq>) -> Later<'_, ()>;
    /// The account at a CA, by its directory: credentials that are secret.
    fn acme_account(&self, directory: &str) -> Later<'_, Option<String>>;
    /// Keeps an account at a CA, in place of the one before.
    fn put_acme_account(&self, directory: &str, credentials: String) -> Later<'_, ()>;
    /// All certificates that are kept or wanted.
    fn certificates(&self) -> Later<'_, Vec<CertificateRow>>;
    /// Keeps a certificate, in place of the one before of the same names. That somebody asked for another stays, unless
    /// it was asked before `served`.
    fn put_certificate(&self, row: CertificateRow, served: Option<Timestamp>) -> Later<'_, ()>;
    /// Forgets a certificate.
    fn remove_certificate(&self, names: &str) -> Later<'_, ()>;
    /// Asks for another of each certificate, and says of how many.
    fn renew_certificates(&self, at: Timestamp) -> Later<'_, usize>;
    /// How many bytes of its own files it can use again: they do not shrink.
    fn reusable(&self) -> Later<'_, u64>;
    /// Removes dead letters, and says which.
    fn remove(&self, which: Dead) -> Later<'_, Vec<Seq>>;
}

/// A delivery's place in the order of acceptance.
pub type Seq = u64;

/// Names an endpoint for ever: a name that is released and claimed again is another endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct EndpointId(pub u64);

/// The store failed; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or file cannot be used.
    #[error("cannot open the store {path}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file was written by a newer version.
    #[error("the store was written by a newer version of hookway-relay (schema {0})")]
    Newer(i64),
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The database failed.
    #[error("the store failed")]
    Failed(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// There is none.
    #[error("there is no relay's store in {0}")]
    Missing(String),
    /// A file that is to be written is there.
    #[error("{0} is there already")]
    There(String),
    /// A file is no backup, or is broken.
    #[error("{path} is no backup that can be used: {why}")]
    NoBackup {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Who owns an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointRow {
    /// Names it for ever.
    #[serde(skip)]
    pub id: EndpointId,
    /// Its name.
    pub name: String,
    /// The name of the owning token.
    pub owner: String,
    /// When it was first claimed.
    pub created_at: Timestamp,
    /// When a client last connected for it.
    pub last_seen_at: Timestamp,
    /// What its operator protects it with.
    #[serde(skip_serializing_if = "Protection::is_none", serialize_with = "shown")]
    pub protection: Protection,
}

fn shown<S: serde::Serializer>(protection: &Protection, serializer: S) -> Result<S::Ok, S::Error> {
    Shown(protection).serialize(serializer)
}

/// A released name is kept for its owner for this long, unless its operator says otherwise.
pub const HELD_FOR: Duration = Duration::from_secs(30 * 86_400);

/// What came of asking for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Whose it is now: his who asked, or another's.
    Has(EndpointRow),
    /// It was another's, and is free for all only then.
    Held(Timestamp),
    /// Who asked has as many as he may.
    TooMany,
}

/// A host name of a developer's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DomainRow {
    /// In lower case, as A-labels.
    pub host: String,
    /// Where it leads.
    #[serde(skip)]
    pub endpoint: EndpointId,
    /// When it was shown to be the developer's.
    pub proved_at: Timestamp,
}

/// Who gets an endpoint's deliveries: the endpoint's only client or those that take turns, without a name; or one of
/// those that each get a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerRow {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The listener's name, or empty.
    pub name: String,
    /// What it asks for its deliveries.
    pub rules: Vec<u8>,
    /// When it was there last.
    pub seen_at: Timestamp,
    /// What could not be kept for it, and it was not told yet.
    pub missed: Missed,
}

/// For operators.
impl Serialize for ListenerRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, seen_at, missed, .. } = self;
        let shown = serde_json::json!({"name": name, "last_seen_at": seen_at, "missed": missed.count});
        shown.serialize(serializer)
    }
}

/// Deliveries that could not be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// So many.
    pub count: u64,
    /// When the first of them came; unset for none.
    pub since: Option<Timestamp>,
    /// Why the last of them could not, for a person.
    pub why: String,
}

/// What is known of a delivery that is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDelivery {
    /// Names it.
    pub id: DeliveryId,
    /// Whose it is.
    pub endpoint: EndpointId,
    /// That endpoint's name.
    pub name: String,
    /// Which of its listeners it is for; empty without names.
    pub listener: String,
    /// When the relay had its head.
    pub received_at: Timestamp,
    /// Its method.
    pub method: String,
    /// Its path, or the beginning of it; [`MAX_PATH`] bytes at most.
    pub path: String,
    /// The size of head and body.
    pub bytes: u64,
    /// How often it was handed over.
    pub attempts: u32,
    /// Whether the app may have had it.
    pub handed: bool,
}

/// As much of a path is kept beside a delivery, in bytes.
pub const MAX_PATH: usize = 256;

/// A delivery that is kept, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedRow {
    /// Its place in the order of acceptance.
    pub seq: Seq,
    /// Since when it waits: since it was received, or made to wait again.
    pub since: Timestamp,
    /// What is known of it.
    pub delivery: NewDelivery,
    /// What came of the last attempt; empty for none.
    pub last: String,
    /// Since when it is a dead letter, if it is one.
    pub dead_since: Option<Timestamp>,
}

/// For operators.
impl Serialize for QueuedRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { seq, delivery, last, since, dead_since } = self;
        let shown = serde_json::json!({
            "seq": seq, "id": delivery.id.to_string(), "endpoint": delivery.name, "method": delivery.method,
            "listener": Some(&delivery.listener).filter(|name| !name.is_empty()), "path": delivery.path,
            "bytes": delivery.bytes, "received_at": delivery.received_at, "since": since,
            "attempts": delivery.attempts, "possible_duplicate": delivery.handed,
            "last": Some(last).filter(|last| !last.is_empty()), "dead_since": dead_since,
        });
        shown.serialize(serializer)
    }
}

/// Which deliveries to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Of this endpoint; of all, when unset.
    pub endpoint: Option<String>,
    /// Dead letters, or those that wait; both, when unset.
    pub dead: Option<bool>,
    /// With this id: copies have the same.
    pub id: Option<DeliveryId>,
    /// After this one.
    pub after: Seq,
    /// So many at most.
    pub most: usize,
}

/// A delivery as it is handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// The encoding of its head.
    pub head: Bytes,
    /// Its body.
    pub body: Bytes,
    /// The encoding of its trailers.
    pub trailers: Bytes,
}

/// What came of handing a delivery over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The app has it.
    Done,
    /// It waits on.
    Again {
        /// How often it was handed over by now.
        attempts: u32,
        /// Whether the app may have had it.
        handed: bool,
        /// What came of it, in words.
        last: String,
    },
    /// It is not tried again.
    Dead {
        /// How often it was handed over.
        attempts: u32,
        /// Why not. What came of the last attempt stays beside it.
        last: String,
        /// When that was.
        at: Timestamp,
    },
}

/// A certificate that is kept, or wanted and not there yet.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateRow {
    /// The names it is for, with spaces between them.
    pub names: String,
    /// The CA it is from.
    pub directory: String,
    /// The chain in PEM, leaf first; empty while there is none.
    pub chain: String,
    /// Its key in PEM.
    pub key: String,
    /// When the next is ordered.
    pub due: Timestamp,
    /// How often that failed in a row.
    pub failures: u32,
    /// Why it failed the last time, for a person; empty when it did not.
    pub last_error: String,
    /// When somebody asked for another, if nothing came of that yet.
    pub asked_at: Option<Timestamp>,
}

impl CertificateRow {
    /// One that is wanted at once.
    #[must_use]
    pub fn wanted(names: String, directory: &str) -> Self {
        let (chain, key, last_error) = (String::new(), String::new(), String::new());
        let directory = directory.to_owned();
        Self { names, directory, chain, key, due: Timestamp::now(), failures: 0, last_error, asked_at: None }
    }
}

impl std::fmt::Debug for CertificateRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateRow").field("names", &self.names).field("due", &self.due).finish_non_exhaustive()
    }
}

/// Which dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dead {
    /// These.
    These(Vec<Seq>),
    /// All that have been dead since then or longer.
    Before(Timestamp),
}

/// Opens the store of a data folder, making both when they are not there. One of an earlier version becomes one of this.
///
/// # Errors
/// The folder or file cannot be used, or is a newer version's.
pub fn open(data_dir: &Path) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(sqlite::Database::open(data_dir, true)?))
}

/// The same, and leaves one of an earlier version as the relay of that version knows it.
///
/// # Errors
/// The folder or file cannot be used, or is a newer version's.
pub fn open_as_it_is(data_dir: &Path) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(sqlite::Database::open(data_dir, false)?))
}

/// Whether a data folder has a store.
#[must_use]
pub fn is_in(data_dir: &Path) -> bool {
    sqlite::path(data_dir).exists()
}

/// What a backup has, or had when it was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// When it was made.
    pub made_at: Timestamp,
    /// By which version of `hookway-relay`.
    pub version: String,
    /// Endpoints.
    pub endpoints: u64,
    /// Tokens, revoked ones too.
    pub tokens: u64,
    /// Deliveries that wait, and dead letters.
    pub deliveries: u64,
    /// Other files of the data folder: the relay's own CA.
    pub files: Vec<String>,
}

/// Writes all that survives a restart into one file: the store as it is at one moment, whether a relay runs on it or
/// not, and the relay's own CA. The file is an SQLite database, and as secret as the data folder.
///
/// # Errors
/// There is no store, or the file is there already or cannot be written.
pub fn backup(data_dir: &Path, file: &Path) -> Result<Backup, StoreError> {
    sqlite::backup(data_dir, file)
}

/// Makes a data folder of a backup. Whatever waited then is marked as a possible duplicate: it may have been handed over
/// since.
///
/// # Errors
/// The file is no backup or is broken, or the folder has a store.
pub fn restore(file: &Path, data_dir: &Path) -> Result<Backup, StoreError> {
    sqlite::restore(file, data_dir)
}

/// The version of the schema of a data folder's store, if there is one, and the version that this program makes of it.
///
/// # Errors
/// The file cannot be read.
pub fn versions(data_dir: &Path) -> Result<(Option<i64>, i64), StoreError> {
    sqlite::versions(data_dir)
}

impl dyn Store {
    /// The key that QUIC's stateless resets are made with; the same for every run.
    pub(crate) async fn reset_key(&self) -> Result<[u8; 32], StoreError> {
        let mut fresh = [0; 32];
        aws_lc_rs::rand::fill(&mut fresh).expect("the operating system gives random bytes");
        self.kept_key(fresh).await
    }
}
