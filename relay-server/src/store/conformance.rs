//! What every store does. Each case gets a store and a way to open the same one again.

use std::sync::Arc;
use std::time::Duration;

use hookway_protocol::id::DeliveryId;
use jiff::Timestamp;

use super::{
    CertificateRow, Claimed, Dead, DomainRow, EndpointId, EndpointRow, ListenerRow, Missed, NewDelivery, Payload, Seq,
    Settled, Store,
};

/// A store of a folder, that can be closed and opened again.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn open(&self) -> Arc<dyn Store> {
        super::open(self.0.path()).expect("a store")
    }
}

fn delivery(endpoint: EndpointId, text: &str) -> (NewDelivery, Payload) {
    let row = NewDelivery {
        id: DeliveryId::now(),
        endpoint,
        name: "billing".into(),
        listener: "laptop".into(),
        received_at: Timestamp::from_microsecond(1_700_000_000_123_456).expect("a time"),
        method: "POST".into(),
        path: format!("/{text}"),
        bytes: text.len() as u64,
        attempts: 0,
        handed: false,
    };
    let body = bytes::Bytes::copy_from_slice(text.as_bytes());
    (row, Payload { head: vec![1, 2].into(), body, trailers: vec![0, 255].into() })
}

async fn endpoint(store: &dyn Store) -> EndpointId {
    let name = "billing".parse().expect("a name");
    has(store.claim_endpoint(&name, "ann", 9, Timestamp::now()).await.expect("a claim")).id
}

fn has(claimed: Claimed) -> EndpointRow {
    match claimed {
        Claimed::Has(row) => row,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn tokens_and_endpoints_survive() {
    let place = Place::new();
    let name = "billing".parse().expect("a name");
    let now = Timestamp::now();
    let store = place.open();
    let new = store.create_token("ann", vec!["billing-*".into()], None).await.expect("a token");
    let claimed = has(store.claim_endpoint(&name, "ann", 1, now).await.expect("a claim"));
    drop(store);

    let store = place.open();
    assert_eq!(store.tokens().await.expect("tokens"), vec![new.row.clone()]);
    let again = has(store.claim_endpoint(&name, "bob", 1, now).await.expect("a claim"));
    assert_eq!((again.owner.as_str(), again.id), ("ann", claimed.id), "the first keeps it");
    assert!(store.release_endpoint(&name, None, now, now).await.expect("released"));
    assert!(!store.release_endpoint(&name, None, now, now).await.expect("nothing to release"));
    let other = has(store.claim_endpoint(&name, "bob", 1, now).await.expect("a claim"));
    assert_eq!(other.owner, "bob");
    assert_ne!(other.id, claimed.id, "the name is another endpoint now");
    let second = "accounts".parse().expect("a name");
    assert_eq!(store.claim_endpoint(&second, "bob", 1, now).await.expect("a claim"), Claimed::TooMany);
    let own = has(store.claim_endpoint(&name, "bob", 1, now).await.expect("a claim"));
    assert_eq!(own.owner, "bob", "the one he has stays");
    assert!(store.token(new.token.hash()).await.expect("a look").filter(crate::store::TokenRow::is_valid).is_some());
    assert_eq!(store.revoke_tokens("ann", now).await.expect("revoked").len(), 1);
    assert!(store.token(new.token.hash()).await.expect("a look").filter(crate::store::TokenRow::is_valid).is_none());
}

#[tokio::test]
async fn a_released_name_is_kept_for_its_owner() {
    let place = Place::new();
    let store = place.open();
    endpoint(&*store).await;
    let name = "billing".parse().expect("a name");
    let (now, day) = (Timestamp::now(), Duration::from_secs(86_400));
    assert!(store.release_endpoint(&name, None, now, now + day).await.expect("released"));
    drop(store);

    let store = place.open();
    let claim = async |owner, at| store.claim_endpoint(&name, owner, 9, at).await.expect("asked");
    let held = Claimed::Held(Timestamp::from_microsecond((now + day).as_microsecond()).expect("a time"));
    assert_eq!(claim("bob", now).await, held);
    assert_eq!(has(claim("ann", now).await).owner, "ann", "it is his at any time");
    assert_eq!(has(claim("bob", now).await).owner, "ann");
    assert!(store.release_endpoint(&name, None, now, now + day).await.expect("released"));
    assert_eq!(has(claim("bob", now + day).await).owner, "bob");
    // What is held for him counts among what he has.
    let others: Vec<_> = ["one", "two"].map(|name| name.parse().expect("a name")).into();
    assert!(matches!(store.claim_endpoint(&others[0], "cid", 2, now).await.expect("asked"), Claimed::Has(_)));
    assert!(store.release_endpoint(&others[0], None, now, now + day).await.expect("released"));
    assert!(matches!(store.claim_endpoint(&others[1], "cid", 1, now).await.expect("asked"), Claimed::TooMany));
    assert!(matches!(store.claim_endpoint(&others[0], "cid", 1, now).await.expect("asked"), Claimed::Has(_)));
    // Whoever has it no more releases nothing, and a name that is held stays so.
    let bobs = has(claim("bob", now + day).await).id;
    let other = Some(EndpointId(bobs.0 + 1));
    assert!(!store.release_endpoint(&name, other, now, now).await.expect("not his"));
    assert!(store.release_endpoint(&name, Some(bobs), now, now + day).await.expect("released"));
    assert!(!store.release_endpoint(&name, Some(bobs), now, now).await.expect("his no more"));
    assert_eq!(claim("ann", now).await, held);
    assert!(store.release_endpoint(&name, None, now, now + day).await.expect("held, once more"));
    assert_eq!(claim("ann", now).await, held);
    // Released for good, it is anybody's.
    assert!(store.release_endpoint(&name, None, now, now).await.expect("nobody has it, but it is held"));
    assert_eq!(has(claim("ann", now).await).owner, "ann");
}

#[tokio::test]
async fn domains_survive_and_go_with_their_endpoint() {
    let place = Place::new();
    let store = place.open();
    let billing = endpoint(&*store).await;
    let row = |host: &str, endpoint| DomainRow {
        host: host.into(),
        endpoint,
        proved_at: Timestamp::from_microsecond(1_700_000_000_123_456).expect("a time"),
    };
    let all = [row("a.example", billing), row("b.example", billing), row("c.example", EndpointId(999))];
    for row in &all {
        store.put_domain(row.clone()).await.expect("kept");
    }
    drop(store);

    let store = place.open();
    assert_eq!(store.domains().await.expect("domains"), all[..2], "none leads to an endpoint that is not there");
    let other = "other".parse().expect("a name");
    let other = has(store.claim_endpoint(&other, "bob", 9, Timestamp::now()).await.expect("a claim")).id;
    store.put_domain(row("a.example", other)).await.expect("kept");
    assert_eq!(store.domains().await.expect("domains"), [row("a.example", other), row("b.example", billing)]);
    assert!(!store.remove_domain("a.example", Some(billing)).await.expect("it leads elsewhere"));
    assert!(store.remove_domain("a.example", None).await.expect("removed"));
    assert!(!store.remove_domain("a.example", None).await.expect("nothing to remove"));
    let (name, now) = ("billing".parse().expect("a name"), Timestamp::now());
    assert!(store.release_endpoint(&name, None, now, now).await.expect("released"));
    assert_eq!(store.domains().await.expect("domains"), []);
}

#[tokio::test]
async fn tokens_that_ended_long_ago_are_forgotten() {
    let place = Place::new();
    let store = place.open();
    let day = Duration::from_secs(86_400);
    for days in [31, 29] {
        store.create_token("old", vec![], Some(Timestamp::now() - day * days)).await.expect("a token");
    }
    let valid = store.create_token("new", vec![], Some(Timestamp::now() + day)).await.expect("a token");
    store.create_token("last", vec![], None).await.expect("a token");
    let names: Vec<_> = store.tokens().await.expect("tokens").into_iter().map(|token| token.name).collect();
    assert_eq!(names, ["old", "new", "last"]);
    assert!(store.token(valid.token.hash()).await.expect("a look").filter(crate::store::TokenRow::is_valid).is_some());
}

#[tokio::test]
async fn deliveries_survive_in_the_order_of_acceptance() {
    let place = Place::new();
    let store = place.open();
    let billing = endpoint(&*store).await;
    let mut pushed = Vec::new();
    for text in ["first", "", "third"] {
        let (row, payload) = delivery(billing, text);
        let seq = store.push(row.clone(), payload.clone()).await.expect("pushed");
        pushed.push((seq, row, payload));
    }
    assert!(pushed.is_sorted_by_key(|(seq, ..)| *seq));
    drop(store);

    let store = place.open();
    let rows = store.deliveries().await.expect("deliveries");
    let kept: Vec<_> = rows.iter().map(|row| (row.seq, row.delivery.clone())).collect();
    assert_eq!(kept, pushed.iter().map(|(seq, row, _)| (*seq, row.clone())).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.since == row.delivery.received_at && row.dead_since.is_none()));
    for (seq, _, payload) in &pushed {
        assert_eq!(store.payload(*seq).await.expect("read").as_ref(), Some(payload));
    }
    let last = pushed[2].0;
    store.settle(last, Settled::Done).await.expect("settled");
    assert_eq!(store.payload(last).await.expect("read"), None);
    drop(store);
    let store = place.open();
    let (row, payload) = delivery(billing, "later");
    assert!(store.push(row, payload).await.expect("pushed") > last, "a number is never given twice");
}

#[tokio::test]
async fn what_came_of_a_delivery_survives() {
    let place = Place::new();
    let store = place.open();
    let billing = endpoint(&*store).await;
    let (row, payload) = delivery(billing, "one");
    let seq = store.push(row, payload.clone()).await.expect("pushed");
    let only = async |store: &Arc<dyn Store>| store.deliveries().await.expect("deliveries").pop().expect("one");
    store.mark_handed(vec![seq, 999], true).await.expect("marked");
    assert!(only(&store).await.delivery.handed);
    store.mark_handed(vec![seq], false).await.expect("marked");
    assert!(!only(&store).await.delivery.handed);
    let again = Settled::Again { attempts: 3, handed: true, last: "the app answered 500".into() };
    store.settle(seq, again).await.expect("settled");
    drop(store);

    let store = place.open();
    let kept = only(&store).await;
    assert_eq!((kept.delivery.attempts, kept.delivery.handed, kept.last.as_str()), (3, true, "the app answered 500"));
    let at = Timestamp::from_microsecond(1_800_000_000_000_000).expect("a time");
    let hour = Duration::from_secs(3600);
    store.settle(seq, Settled::Dead { attempts: 4, last: "too old".into(), at }).await.expect("settled");
    let kept = only(&store).await;
    let last = "too old; before that: the app answered 500";
    assert_eq!((kept.delivery.attempts, kept.last.as_str(), kept.dead_since), (4, last, Some(at)));
    assert_eq!(store.payload(seq).await.expect("read"), Some(payload), "a dead letter is kept whole");
    assert_eq!(store.dead_letters(billing, 1).await.expect("read"), [kept]);
    assert_eq!(store.dead_letters(billing, 0).await.expect("read"), []);
    assert_eq!(store.dead_letters(EndpointId(billing.0 + 1), 9).await.expect("read"), []);

    assert_eq!(store.revive(Dead::These(vec![seq + 1]), at).await.expect("none"), Vec::<Seq>::new());
    assert_eq!(store.remove(Dead::Before(at - hour)).await.expect("none"), Vec::<Seq>::new());
    assert_eq!(store.revive(Dead::These(vec![seq]), at + hour).await.expect("revived"), vec![seq]);
    let kept = only(&store).await;
    assert_eq!((kept.dead_since, kept.since), (None, at + hour), "its time begins anew");
    store.for_anyone(vec![seq, 999]).await.expect("changed");
    assert_eq!(only(&store).await.delivery, NewDelivery { listener: String::new(), ..kept.delivery });
    assert_eq!(store.remove(Dead::These(vec![seq])).await.expect("none"), Vec::<Seq>::new(), "it is not dead");
    store.settle(seq, Settled::Dead { attempts: 5, last: String::new(), at }).await.expect("settled");
    assert_eq!(store.remove(Dead::Before(at)).await.expect("removed"), vec![seq]);
    assert_eq!(store.payload(seq).await.expect("read"), None);
}

#[tokio::test]
async fn what_waits_for_a_name_that_is_released_is_for_nobody_else() {
    let place = Place::new();
    let store = place.open();
    let billing = endpoint(&*store).await;
    let (row, payload) = delivery(billing, "anns");
    let seq = store.push(row, payload).await.expect("pushed");
    let now = Timestamp::now();
    assert!(store.release_endpoint(&"billing".parse().expect("a name"), None, now, now).await.expect("released"));
    let next = has(store.claim_endpoint(&"billing".parse().expect("a name"), "bob", 9, now).await.expect("a claim"));
    let row = store.deliveries().await.expect("deliveries").pop().expect("it is kept");
    assert_eq!((row.seq, row.delivery.endpoint), (seq, billing));
    assert!(row.dead_since.is_some());
    assert_ne!(next.id, billing);
}

#[tokio::test]
async fn listeners_survive_and_go_with_their_endpoint() {
    let place = Place::new();
    let store = place.open();
    let billing = endpoint(&*store).await;
    let at = |us| Timestamp::from_microsecond(us).expect("a time");
    let row = |name: &str, rules: &[u8]| ListenerRow {
        endpoint: billing,
        name: name.into(),
        rules: rules.to_vec(),
        seen_at: at(1_700_000_000_000_001),
        missed: Missed::default(),
    };
    for row in [row("", &[1]), row("laptop", &[2]), row("desk", &[])] {
        store.put_listener(row).await.expect("kept");
    }
    let missed = Missed { count: 3, since: Some(at(1_700_000_000_000_002)), why: "the queue is full".into() };
    let later = ListenerRow { missed, seen_at: at(1_800_000_000_000_000), ..row("laptop", &[3, 4]) };
    store.put_listener(later.clone()).await.expect("kept in place of the other");
    store.remove_listener(billing, "desk").await.expect("forgotten");
    drop(store);

    let store = place.open();
    assert_eq!(store.listeners().await.expect("listeners"), [row("", &[1]), later]);
    assert!(store.release_endpoint(&"billing".parse().expect("a name"), None, at(0), at(0)).await.expect("released"));
    assert_eq!(store.listeners().await.expect("listeners"), []);
    store.put_listener(row("laptop", &[])).await.expect("nothing to do");
    assert_eq!(store.listeners().await.expect("listeners"), [], "of an endpoint that is no more");
}

#[tokio::test]
async fn many_at_once_are_all_kept() {
    let place = Place::new();
    let store = place.open();
    let billing = endpoint(&*store).await;
    let push = |number: usize| {
        let store = store.clone();
        async move {
            let (row, payload) = delivery(billing, &number.to_string());
            store.push(row, payload).await.expect("pushed")
        }
    };
    let mut seqs = futures_util::future::join_all((0..2000).map(push)).await;
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs.len(), 2000);
    assert_eq!(store.deliveries().await.expect("deliveries").len(), 2000);
}

#[tokio::test]
async fn one_that_cannot_be_kept_takes_no_other_with_it() {
    let place = Place::new();
    let store = place.open();
    let billing = endpoint(&*store).await;
    let row = super::TokenRow {
        scope: crate::auth::Scope::Client,
        id: "tok_same".into(),
        name: "ann".into(),
        hash: [7; 32],
        endpoints: vec![],
        created_at: Timestamp::now(),
        expires_at: None,
        revoked_at: None,
    };
    store.insert_token(row.clone()).await.expect("the first");
    let (delivery, payload) = delivery(billing, "beside it");
    let (first, second, third) = tokio::join!(
        store.push(delivery.clone(), payload.clone()),
        store.insert_token(row),
        store.push(delivery, payload)
    );
    assert!(second.is_err(), "there is one of that id already");
    assert_eq!(store.deliveries().await.expect("deliveries").len(), 2);
    assert_ne!(first.expect("pushed"), third.expect("pushed"));
}

#[tokio::test]
async fn a_change_by_another_process_is_seen_and_ones_own_is_not() {
    let place = Place::new();
    let (store, other) = (place.open(), place.open());
    let before = store.version().await.expect("a version");
    store.create_token("own", vec![], None).await.expect("a token");
    assert_eq!(store.version().await.expect("a version"), before);
    other.create_token("ann", vec![], None).await.expect("a token");
    assert_ne!(store.version().await.expect("a version"), before);
}

#[tokio::test]
async fn accounts_and_certificates_are_kept_and_can_be_made_due() {
    let place = Place::new();
    let store = place.open();
    let (one, other) = ("https://one.test/dir", "https://other.test/dir");
    assert_eq!(store.acme_account(one).await.expect("read"), None);
    store.put_acme_account(one, "first".into()).await.expect("kept");
    store.put_acme_account(other, "second".into()).await.expect("kept");
    store.put_acme_account(one, "third".into()).await.expect("in its place");
    let due = Timestamp::from_microsecond(1_700_000_000_123_456).expect("a time");
    let wanted = CertificateRow { due, ..CertificateRow::wanted("hooks.test *.hooks.test".into(), one) };
    store.put_certificate(wanted.clone(), None).await.expect("kept");
    let failed = CertificateRow { failures: 3, last_error: "why".into(), ..wanted };
    let got = CertificateRow { chain: "chain".into(), key: "key".into(), ..failed };
    store.put_certificate(got.clone(), None).await.expect("in its place");
    drop(store);

    let store = place.open();
    assert_eq!(store.acme_account(one).await.expect("read").as_deref(), Some("third"));
    assert_eq!(store.acme_account(other).await.expect("read").as_deref(), Some("second"));
    assert_eq!(store.certificates().await.expect("read"), vec![got.clone()]);
    let asked = due + Duration::from_secs(60);
    assert_eq!(store.renew_certificates(asked).await.expect("asked for"), 1);
    let asked_for = CertificateRow { asked_at: Some(asked), ..got.clone() };
    for served in [None, Some(due)] {
        store.put_certificate(got.clone(), served).await.expect("kept");
        assert_eq!(store.certificates().await.expect("read"), vec![asked_for.clone()], "it was asked for later");
    }
    store.put_certificate(got.clone(), Some(asked)).await.expect("kept");
    assert_eq!(store.certificates().await.expect("read"), vec![got]);
    assert!(!format!("{:?}", store.certificates().await).contains("key:"), "keys are not shown");
    store.remove_certificate("hooks.test *.hooks.test").await.expect("removed");
    assert_eq!(store.certificates().await.expect("read"), vec![]);
}
