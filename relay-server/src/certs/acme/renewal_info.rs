//! What the CA says of when to renew (ARI, RFC 9773).

use std::ops::RangeInclusive;
use std::time::Duration;

use instant_acme::CertificateIdentifier;
use jiff::Timestamp;

use super::{Acme, ORDER_TIME, floor, random};

/// The CA is asked at least and at most so often (RFC 9773 §4.3.2).
const ASKED_AGAIN: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(86_400);

impl Acme {
    /// The certificate whose CA is to be asked next when it is to be renewed.
    pub(super) fn next_to_ask(&self) -> Option<String> {
        let now = Timestamp::now();
        let rows = self.rows();
        let row = rows
            .values()
            .find(|row| row.ask_at <= now && row.leaf.as_ref().is_some_and(|leaf| leaf.not_after > now))?;
        Some(row.kept.names.clone())
    }

    /// Asks the CA when a certificate is to be renewed (RFC 9773 §4), and renews it at a random time of what it says.
    pub(super) async fn ask_when(&self, names: &str) {
        let leaf = self.rows().get(names).and_then(|row| row.leaf.clone());
        let Some(leaf) = leaf else { return };
        let asked = async {
            let id = CertificateIdentifier::try_from(&leaf.key.cert[0]).ok()?.into_owned();
            let account = self.account().await.inspect_err(|error| tracing::debug!(%error, "ARI not asked")).ok()?;
            let info = account.renewal_info(&id).await;
            info.inspect_err(|error| tracing::debug!(%error, "the CA does not say when to renew")).ok()
        };
        let said = tokio::time::timeout(ORDER_TIME, asked).await.ok().flatten();
        let again = said.as_ref().map_or(*ASKED_AGAIN.end() / 4, |(_, again)| *again);
        let again = again.clamp(*ASKED_AGAIN.start(), *ASKED_AGAIN.end());
        let kept = {
            let mut rows = self.rows();
            let Some(row) = rows.get_mut(names) else { return };
            row.ask_at = Timestamp::now().checked_add(again).unwrap_or(Timestamp::MAX);
            let Some((info, _)) = said else { return };
            let window = &info.suggested_window;
            let window = (window.start.unix_timestamp(), window.end.unix_timestamp());
            // A failure that waits for its next try is not hurried.
            let is_due = row.kept.due <= Timestamp::now();
            if row.window.replace(window) == Some(window) || row.kept.failures > 0 || is_due {
                return;
            }
            let within = u64::try_from(window.1 - window.0).unwrap_or(0);
            let at = window.0.saturating_add_unsigned(random(within));
            let at = Timestamp::from_second(at).unwrap_or(Timestamp::UNIX_EPOCH);
            row.kept.due = at.max(floor(row.tried_at, row.quick, &leaf));
            tracing::info!(names, at = %row.kept.due, url = info.explanation_url, "the CA says when to renew");
            row.kept.clone()
        };
        if let Err(error) = self.store.put_certificate(kept, None).await {
            tracing::error!(%error, "when to renew cannot be kept");
        }
    }
}
