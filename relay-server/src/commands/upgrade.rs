//! `hookway-relay upgrade`: the running relay hands over to the program on disk, without a gap.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hookway_protocol::finding::{Finding, State};
use hookway_relay::Running;
use hookway_relay::cli::RunArgs;
use hookway_relay::store;

use super::operate::{running, told};
use super::setup::print;
use super::{block_on, fail, run};

/// Looks whether this program can take over, and has it do so unless it is only to look.
pub(crate) fn upgrade(args: &RunArgs, only_check: bool) -> ExitCode {
    let relay = match running(args.store()) {
        Ok(relay) => relay,
        Err(error) => return fail(&error, 1),
    };
    let findings = findings(args, &relay);
    let fails = findings.iter().any(|finding| finding.state == State::Fail);
    if only_check || fails {
        findings.iter().for_each(|finding| print(finding, args.json()));
        return if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let signal = rustix::process::Signal::USR2;
    let done = block_on(told(args.store(), &relay, signal, run::HAND_OVER, "nobody took over: it goes on as before"));
    done.unwrap_or_else(|error| fail(&error, 1))
}

/// What stands in the way of a hand-over to this program.
fn findings(args: &RunArgs, relay: &Running) -> Vec<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let mut all = vec![if relay.version == own {
        Finding::ok("version", format!("{own}, as the relay that runs"))
    } else {
        Finding::ok("version", format!("from {} to {own}", relay.version))
    }];
    all.push(program(relay));
    all.push(match args.config() {
        Ok(_) => Finding::ok("config", "it can be used"),
        Err(error) => Finding::fail("config", error.to_string(), error.next()),
    });
    all.push(schema(args.data_dir()));
    all
}

/// The relay that runs begins the program at the place where its own was.
fn program(relay: &Running) -> Finding {
    let runs = std::fs::read_link(format!("/proc/{}/exe", relay.pid));
    let runs = runs.map(|path| PathBuf::from(path.to_string_lossy().trim_end_matches(" (deleted)")));
    match (runs, std::env::current_exe()) {
        (Ok(runs), Ok(own)) if runs == own => Finding::ok("program", format!("{} is what runs next", own.display())),
        (Ok(runs), Ok(own)) => Finding::warn(
            "program",
            format!("the relay runs from {}, and this is {}", runs.display(), own.display()),
            format!("put the new program there:  install {} {}", own.display(), runs.display()),
        ),
        _ => Finding::warn("program", "which program runs cannot be seen", "look as the user that runs it, or root"),
    }
}

fn schema(data_dir: &Path) -> Finding {
    let check = "store";
    match store::versions(data_dir) {
        Ok((Some(found), newest)) if found > newest => Finding::fail(
            check,
            format!("a newer version wrote it (schema {found}; this one knows {newest})"),
            "install that version, or a later one",
        ),
        Ok((Some(found), newest)) if found < newest => {
            let bytes = data_dir.join("relay.db").metadata().map_or(0, |data| data.len());
            let copy = data_dir.join(format!("relay.db.schema-{found}"));
            let what = format!(
                "schema {found} becomes {newest}; a copy is kept first: {} ({} MiB)",
                copy.display(),
                bytes.div_ceil(1 << 20)
            );
            match rustix::fs::statvfs(data_dir) {
                Ok(fs) if fs.f_bavail.saturating_mul(fs.f_frsize) < bytes.saturating_mul(2) => {
                    Finding::fail(check, format!("{what}, for which there is no room"), "make room on the disk")
                }
                _ => Finding::ok(check, what),
            }
        }
        Ok((_, newest)) => Finding::ok(check, format!("schema {newest}, which stays")),
        Err(error) => Finding::fail(check, error.to_string(), "look as the user that runs the relay, or root"),
    }
}
