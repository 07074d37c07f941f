//! `hookway-relay backup` and `restore`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use hookway_relay::cli::StoreArgs;
use hookway_relay::store::{self, Backup, Note, StoreError};
use serde_json::json;

use super::{NAME_IT, is_older, this_account, with_next};

pub(crate) async fn backup(args: StoreArgs, file: &Path) -> anyhow::Result<ExitCode> {
    // Also beside a relay of an earlier version: before an upgrade it is wanted most.
    let is_older = is_older(&args.data_dir)?;
    let made = store::backup(&args.data_dir, file).map_err(|error| match error {
        StoreError::There(_) => with_next(error, "choose another name; backups are not written over"),
        StoreError::Missing(_) => with_next(error, NAME_IT),
        StoreError::Newer(_) => with_next(error, "back it up with the version that wrote it, or a later one"),
        error => with_next(error, "check that the folder can be written and has room"),
    })?;
    let opened = store::open_as_it_is(&args.data_dir)?.acting(this_account());
    let noted = opened.note(Note::done("store.backup", file.display().to_string(), summary(&made))).await;
    // Its store may have no audit log yet.
    noted.or_else(|error| if is_older { Ok(()) } else { Err(error) })?;
    tell(&args, "backup", file, &made);
    if !args.json {
        tell!("It is as secret as the data folder: whoever has it can read what waits, and pass for this relay.");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn restore(args: StoreArgs, file: &Path) -> anyhow::Result<ExitCode> {
    // systemd's state folder is a link, which is to stay.
    let folder = args.data_dir.canonicalize().unwrap_or_else(|_| args.data_dir.clone()).display().to_string();
    let is_running = hookway_relay::running(&args.data_dir).ok().flatten().is_some();
    anyhow::ensure!(!is_running, "a relay runs on {folder}\n  next:  systemctl stop hookway-relay");
    let restored = store::restore(file, &args.data_dir).map_err(|error| match error {
        StoreError::There(_) => with_next(
            error,
            &format!("move what is there away:  mv {folder} {folder}.old      or give another --data-dir"),
        ),
        StoreError::Newer(_) => with_next(error, "restore it with the version that made it, or a later one"),
        error => with_next(error, "take another backup, and check that --data-dir can be written"),
    })?;
    let opened = store::open(&args.data_dir)?.acting(this_account());
    opened.note(Note::done("store.restore", file.display().to_string(), summary(&restored))).await?;
    tell(&args, "restored", file, &restored);
    if !args.json && restored.deliveries > 0 {
        tell!("What waited is marked as a possible duplicate: it may have been handed over after the backup was made.");
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(backup: &Backup) -> String {
    let Backup { made_at, version, endpoints, tokens, deliveries, .. } = backup;
    format!("made {made_at:.0} by {version}: {endpoints} endpoints, {tokens} tokens, {deliveries} deliveries")
}

fn tell(args: &StoreArgs, event: &str, file: &Path, backup: &Backup) {
    if args.json {
        let mut line = json!(backup);
        (line["event"], line["file"]) = (event.into(), file.display().to_string().into());
        line["bytes"] = file.metadata().map_or(0, |data| data.len()).into();
        say!("{line}");
    } else {
        say!("{event}  {}: {}", file.display(), summary(backup));
    }
}
