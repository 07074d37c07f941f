//! The account at the CA.

use instant_acme::{Account, AccountBuilder, ExternalAccountKey, NewAccount};

use super::Acme;
use super::order::Failed;

impl Acme {
    /// The account: the one that is kept, or a new one.
    pub(super) async fn account(&self) -> Result<Account, Failed> {
        let mut account = self.account.lock().await;
        if let Some(account) = &*account {
            return Ok(account.clone());
        }
        let kept = self.store.acme_account(&self.config.directory).await?;
        let made = match kept.and_then(|text| serde_json::from_str(&text).ok()) {
            Some(credentials) => self.builder().from_credentials(credentials).await?,
            None => self.make_account().await?,
        };
        Ok(account.insert(made).clone())
    }

    /// Another account in place of one that is no more.
    pub(super) async fn new_account(&self) -> Result<(), Failed> {
        let mut account = self.account.lock().await;
        *account = None;
        *account = Some(self.make_account().await?);
        Ok(())
    }

    async fn make_account(&self) -> Result<Account, Failed> {
        let contact: Vec<String> = self.config.email.iter().map(|email| format!("mailto:{email}")).collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let account = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let binding = self.config.binding.as_ref();
        let binding = binding.map(|binding| ExternalAccountKey::new(binding.kid.clone(), &binding.key));
        let directory = self.config.directory.clone();
        let made = self.builder().create(&account, directory, binding.as_ref()).await;
        let (account, credentials) = made.map_err(|why| match &self.config.binding {
            Some(binding) => Failed::Unbound { kid: binding.kid.clone(), why },
            None => why.into(),
        })?;
        let credentials = serde_json::to_string(&credentials).map_err(instant_acme::Error::from)?;
        self.store.put_acme_account(&self.config.directory, credentials).await?;
        Ok(account)
    }

    fn builder(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(self.https.clone()))
    }
}
