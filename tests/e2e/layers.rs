//! Imports point down only: read off the sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The relay's modules from the top; a module may use those on later lines, and those in its own line.
const RELAY: [&[&str]; 12] = [
    &["main", "commands"],
    &["server", "check"],
    &["config", "cli"],
    &["admin", "public"],
    &["relay"],
    &["tunnel"],
    &["queue"],
    &["certs"],
    &["auth"],
    &["store"],
    &["protection"],
    &["access_log", "delivery", "fetch", "handover", "limits", "lock", "metrics", "resolver", "shutdown", "trace"],
];
const CLIENT: [&[&str]; 14] = [
    &["main"],
    &["commands"],
    &["config", "cli"],
    &["inspector"],
    &["output"],
    &["client"],
    &["view"],
    &["tunnel", "replay"],
    &["forwarder"],
    &["webhook"],
    &["history", "export", "diff", "cassette"],
    &["filter", "content", "mask", "samples", "signature"],
    &["events"],
    &["exchange", "target", "harmless", "json", "private", "queueing"],
];

/// What is allowed all the same, and why.
const ALLOWED: [(&str, &str); 7] = [
    // A delivery holds the sender's body and the reply's stream, whose types live where they are read.
    ("delivery", "public"),
    ("delivery", "tunnel"),
    // Why a delivery is not kept is the store's to say.
    ("delivery", "store"),
    // The session passes a sender's body on.
    ("tunnel", "public"),
    // A row is the store's, the hash and the owner are auth's.
    ("store", "auth"),
    // The events say who was let in.
    ("events", "tunnel"),
    // The filter is a flag.
    ("output", "cli"),
];

#[test]
fn imports_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut wrong = Vec::new();
    for (source, layers) in [("relay-server/src", &RELAY[..]), ("tunnel-client/src", &CLIENT[..])] {
        let rank: BTreeMap<&str, usize> =
            layers.iter().enumerate().flat_map(|(rank, names)| names.iter().map(move |name| (*name, rank))).collect();
        let folder = root.join(source);
        let mut files = Vec::new();
        collect(&folder, &mut files);
        for file in files {
            let relative = file.strip_prefix(&folder).expect("inside");
            let module = relative.components().next().and_then(|c| c.as_os_str().to_str()).unwrap_or_default();
            let module = module.trim_end_matches(".rs");
            if module == "lib" {
                continue;
            }
            let from = *rank.get(module).unwrap_or_else(|| panic!("{module} has no layer in this test"));
            let text = std::fs::read_to_string(&file).expect("a source file");
            for used in used_modules(&text) {
                let Some(to) = rank.get(used.as_str()) else { continue };
                if *to < from && !ALLOWED.contains(&(module, used.as_str())) {
                    wrong.push(format!("{source}: {} uses {used}, which is above it", relative.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_mechanism_is_named_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut files = Vec::new();
    for source in ["protocol/src", "relay-server/src", "tunnel-client/src"] {
        collect(&root.join(source), &mut files);
    }
    let allowed = [
        (
            "quinn::",
            &[
                "protocol/src/link.rs",
                "protocol/src/link/quic.rs",
                "protocol/src/link/stream.rs",
                "relay-server/src/tunnel/endpoint.rs",
                "tunnel-client/src/tunnel/dial.rs",
            ][..],
        ),
        (
            "h2::",
            &[
                "protocol/src/link.rs",
                "protocol/src/link/h2.rs",
                "protocol/src/link/h2/halves.rs",
                "protocol/src/link/stream.rs",
            ][..],
        ),
        (
            "rusqlite::",
            &[
                "relay-server/src/store/sqlite.rs",
                "relay-server/src/store/sqlite/audit.rs",
                "relay-server/src/store/sqlite/backup.rs",
                "relay-server/src/store/sqlite/database.rs",
                "relay-server/src/store/sqlite/rows.rs",
                "relay-server/src/store/sqlite/schema.rs",
                "tunnel-client/src/history.rs",
                "tunnel-client/src/history/change.rs",
                "tunnel-client/src/history/file.rs",
                "tunnel-client/src/history/read.rs",
                "tunnel-client/src/history/shared.rs",
            ][..],
        ),
        ("StatusCode::BAD_GATEWAY", &["relay-server/src/public/answer.rs"][..]),
    ];
    for file in files {
        let name = file.strip_prefix(root).expect("inside").display().to_string();
        let text = std::fs::read_to_string(&file).expect("a source file");
        for (word, places) in allowed {
            assert!(!text.contains(word) || places.contains(&name.as_str()), "{name} names {word}");
        }
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            collect(&entry, files);
        } else if entry.extension().is_some_and(|ending| ending == "rs") {
            files.push(entry);
        }
    }
}

/// The modules after `crate::`, also in a group: `use crate::{a, b}`.
fn used_modules(text: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut used = Vec::new();
    for after in text.split("crate::").skip(1) {
        match after.strip_prefix('{').and_then(|group| group.split('}').next()) {
            Some(group) => used.extend(group.split(',').map(|part| word(part.trim()))),
            None => used.push(word(after)),
        }
    }
    used
}
