//! Tokens as they are kept.

use hookway_protocol::id::DeliveryId;
use jiff::Timestamp;
use serde::Serialize;

use super::{Store, StoreError};
use crate::auth::{NewToken, Scope, Token};

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
    /// What it is for.
    pub scope: Scope,
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

impl dyn Store {
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
        self.create_scoped_token(name, Scope::Client, endpoints, expires_at).await
    }

    /// Makes a token that is for something else than clients.
    ///
    /// # Errors
    /// The store failed.
    pub async fn create_scoped_token(
        &self,
        name: &str,
        scope: Scope,
        endpoints: Vec<String>,
        expires_at: Option<Timestamp>,
    ) -> Result<NewToken, StoreError> {
        let token = Token::random();
        let row = TokenRow {
            id: format!("tok_{}", uuid_tail()),
            name: name.to_owned(),
            hash: token.hash(),
            endpoints,
            scope,
            created_at: Timestamp::now(),
            expires_at,
            revoked_at: None,
        };
        self.insert_token(row.clone()).await?;
        Ok(NewToken { token, row })
    }
}

/// 12 characters that no other token has.
fn uuid_tail() -> String {
    let id = DeliveryId::now().to_string().to_lowercase();
    id[id.len() - 12..].to_owned()
}
