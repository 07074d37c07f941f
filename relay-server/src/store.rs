//! What survives a restart: tokens, and who owns which endpoint.
//!
//! Every change is answered after it is on disk. Another process may change the same store (`hookway-relay token`);
//! [`Store::version`] tells when one did.

mod sqlite;

use std::path::Path;

use hookway_protocol::host::EndpointName;
use jiff::Timestamp;
use serde::Serialize;

use crate::auth::{NewToken, Owner, Token};

/// The store in a data folder. Cheap to clone; the last one dropped closes it.
#[derive(Clone, Debug)]
pub struct Store(sqlite::Database);

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
    /// The database failed.
    #[error("the store failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// What is known of a token. Not its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenRow {
    /// Names it in commands.
    pub id: String,
    /// Its owner; tokens of one name are one owner.
    pub name: String,
    /// SHA-256 of its text.
    #[serde(skip)]
    pub hash: [u8; 32],
    /// Patterns of the names it may serve; none means any.
    pub endpoints: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops to be valid.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl TokenRow {
    /// Whether it is neither revoked nor expired.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| at > Timestamp::now())
    }
}

/// Who owns an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointRow {
    /// Its name.
    pub name: String,
    /// The name of the owning token.
    pub owner: String,
    /// When it was first claimed.
    pub created_at: Timestamp,
    /// When a client last connected for it.
    pub last_seen_at: Timestamp,
}

impl Store {
    /// Opens the store of a data folder, making both when they are not there.
    ///
    /// # Errors
    /// The folder or file cannot be used, or is a newer version's.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        sqlite::Database::open(data_dir).map(Self)
    }

    /// Whether a data folder has a store.
    #[must_use]
    pub fn is_in(data_dir: &Path) -> bool {
        sqlite::path(data_dir).exists()
    }

    /// The key that QUIC's stateless resets are made with; the same for every run.
    pub(crate) async fn reset_key(&self) -> Result<[u8; 32], StoreError> {
        let mut fresh = [0; 32];
        aws_lc_rs::rand::fill(&mut fresh).expect("the operating system gives random bytes");
        self.0.run(move |db| sqlite::kept_key(db, &fresh)).await
    }

    /// Changes when another process has changed the store.
    pub(crate) async fn version(&self) -> Result<i64, StoreError> {
        self.0.run(sqlite::version).await
    }

    /// Makes a token.
    ///
    /// # Errors
    /// The store failed.
    pub async fn create_token(
        &self,
        name: &str,
        endpoints: Vec<String>,
        expires_at: Option<Timestamp>,
    ) -> Result<NewToken, StoreError> {
        let token = Token::random();
        let row = TokenRow {
            id: format!("tok_{}", uuid_tail()),
            name: name.to_owned(),
            hash: token.hash(),
            endpoints,
            created_at: Timestamp::now(),
            expires_at,
            revoked_at: None,
        };
        let stored = row.clone();
        self.0.run(move |db| sqlite::insert_token(db, &stored)).await?;
        Ok(NewToken { token, row })
    }

    /// All tokens, revoked ones too, oldest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.0.run(sqlite::tokens).await
    }

    /// Revokes the tokens of that id or name, and says which.
    ///
    /// # Errors
    /// The store failed.
    pub async fn revoke_tokens(&self, id_or_name: &str) -> Result<Vec<TokenRow>, StoreError> {
        let id_or_name = id_or_name.to_owned();
        self.0.run(move |db| sqlite::revoke_tokens(db, &id_or_name, Timestamp::now())).await
    }

    /// Gives a name to an owner unless another has it, or he would have more than `most`, and says who owns it now.
    pub(crate) async fn claim_endpoint(
        &self,
        name: &EndpointName,
        owner: &Owner,
        most: usize,
    ) -> Result<Option<Owner>, StoreError> {
        let (name, owner) = (name.clone(), owner.clone());
        self.0.run(move |db| sqlite::claim_endpoint(db, &name, &owner, most, Timestamp::now())).await
    }

    /// All endpoints by name.
    ///
    /// # Errors
    /// The store failed.
    pub async fn endpoints(&self) -> Result<Vec<EndpointRow>, StoreError> {
        self.0.run(sqlite::endpoints).await
    }

    /// Makes a name free, and says whether somebody had it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn release_endpoint(&self, name: &EndpointName) -> Result<bool, StoreError> {
        let name = name.clone();
        self.0.run(move |db| sqlite::release_endpoint(db, &name)).await
    }
}

/// 12 characters that no other token has.
fn uuid_tail() -> String {
    let id = hookway_protocol::id::DeliveryId::now().to_string().to_lowercase();
    id[id.len() - 12..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tokens_and_endpoints_survive() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = "billing".parse().expect("a name");
        let (ann, bob) = (Owner::from("ann"), Owner::from("bob"));
        let store = Store::open(folder.path()).expect("a store");
        let new = store.create_token("ann", vec!["billing-*".into()], None).await.expect("a token");
        assert_eq!(store.claim_endpoint(&name, &ann, 1).await.expect("an owner"), Some(ann.clone()));
        drop(store);

        let store = Store::open(folder.path()).expect("the same store");
        assert_eq!(store.tokens().await.expect("tokens"), vec![new.row.clone()]);
        assert_eq!(
            store.claim_endpoint(&name, &bob, 1).await.expect("an owner"),
            Some(ann.clone()),
            "the first owner keeps it"
        );
        assert!(store.release_endpoint(&name).await.expect("released"));
        assert_eq!(store.claim_endpoint(&name, &bob, 1).await.expect("an owner"), Some(bob.clone()));
        let second = "accounts".parse().expect("a name");
        assert_eq!(store.claim_endpoint(&second, &bob, 1).await.expect("an owner"), None, "one is his most");
        assert_eq!(store.claim_endpoint(&name, &bob, 1).await.expect("an owner"), Some(bob), "the one he has stays");
        assert!(crate::auth::check(&store.tokens().await.expect("tokens"), &new.token).is_some());
        assert_eq!(store.revoke_tokens("ann").await.expect("revoked").len(), 1);
        assert!(crate::auth::check(&store.tokens().await.expect("tokens"), &new.token).is_none());
    }

    #[tokio::test]
    async fn tokens_that_ended_long_ago_are_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let day = std::time::Duration::from_secs(86_400);
        for days in [31, 29] {
            store.create_token("old", vec![], Some(Timestamp::now() - day * days)).await.expect("a token");
        }
        let valid = store.create_token("new", vec![], Some(Timestamp::now() + day)).await.expect("a token");
        store.create_token("last", vec![], None).await.expect("a token");
        let names: Vec<_> = store.tokens().await.expect("tokens").into_iter().map(|token| token.name).collect();
        assert_eq!(names, ["old", "new", "last"]);
        assert!(crate::auth::check(&store.tokens().await.expect("tokens"), &valid.token).is_some());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_the_store() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let _store = Store::open(folder.path()).expect("a store");
        for entry in std::fs::read_dir(folder.path()).expect("a folder") {
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("its rights").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
        }
    }

    #[tokio::test]
    async fn a_change_by_another_process_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, other) = (Store::open(folder.path()).expect("a store"), Store::open(folder.path()).expect("again"));
        let before = store.version().await.expect("a version");
        assert_eq!(store.version().await.expect("a version"), before);
        other.create_token("ann", vec![], None).await.expect("a token");
        assert_ne!(store.version().await.expect("a version"), before);
    }

    #[test]
    fn a_newer_store_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(Store::open(folder.path()).expect("a store"));
        sqlite::set_schema(folder.path(), 99);
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Newer(99))));
    }
}
