//! What each command does.

mod account;
mod cassette;
#[cfg(feature = "dev")]
mod dev;
mod doctor;
mod drill;
mod endpoints;
mod forward;
mod history;
mod providers;
mod replay;
mod requests;
mod send;
mod webhooks;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::{CassetteArgs, Cli, Command, ConfigCommand, EndpointsCommand, GlobalArgs, PolicyArgs};
use crate::config::{self, ConfigError};
use crate::filter::Filter;
use crate::history::{FileError, WhichError};
use crate::output::{Failure, Output};
use crate::tunnel::ConnectError;
use hookway_protocol::message::Code;

/// Runs the command line to its end.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    // One provider for all of TLS and QUIC.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (cli, files) = match config::parse(args) {
        Ok(Ok(parsed)) => parsed,
        Ok(Err(error)) => {
            let failure = Failure::from(error);
            Output::new(&Cli::default_globals()).fail(&failure);
            return ExitCode::from(failure.code);
        }
        Err(error) => error.exit(),
    };
    let output = Output::new(&cli.global);
    log(&cli.global);
    let done = match cli.command {
        None => forward::run(cli.forward, &files, output),
        #[cfg(feature = "dev")]
        Some(Command::Dev {
            target,
            demo,
            name,
            host_header,
            http,
            https,
            queueing,
            verify,
            policy,
            history,
            inspect,
            once,
        }) => {
            // The demo has a secret of its own.
            let require_signature = policy.require_signature;
            let args = PolicyArgs { require_signature: require_signature && !demo, ..policy };
            let policy = webhooks::policy(&verify, args, &files)
                .map(|policy| crate::webhook::Policy { require_signature, ..policy });
            policy.and_then(|policy| {
                let dev =
                    dev::Dev { target, demo, name, host_header, http, https, queueing, policy, history, inspect, once };
                dev::run(dev, output)
            })
        }
        Some(Command::Requests { find, what }) => requests::run(&find, what, output),
        Some(Command::Replay { cassette, to: Some(to), verify, header, no_resign, timeout, .. })
            if cassette.cassette.is_some() =>
        {
            let CassetteArgs { cassette, expect, max_ms, junit } = cassette;
            let file = cassette.unwrap_or_default();
            let asked = cassette::Asked { file, to, expect, max_ms, junit, header, no_resign, timeout };
            cassette::replay(&asked, &verify, &files, output)
        }
        Some(Command::Replay { ids, failed, since, to, edit, header, times, verify, no_resign, timeout, .. }) => {
            let which = if failed { replay::Chosen::Failed { since } } else { replay::Chosen::These(ids) };
            let policy = webhooks::policy(&verify, PolicyArgs::default(), &files);
            let asked = |policy| replay::Asked { which, to, edit, header, times, no_resign, policy, timeout };
            policy.and_then(|policy| replay::run(&asked(policy), output))
        }
        Some(Command::Send { provider, list: true, .. }) => send::list(&provider, output),
        Some(Command::Send {
            provider, event, to, secret_env, file, set, header, json_body, dry_run, timeout, ..
        }) => {
            let to = to.unwrap_or_default();
            let provider = files.described(&provider, to.path());
            let asked = send::Asked { provider, event, to, secret_env, file, set, header, json_body, dry_run, timeout };
            send::run(&asked, &files, output)
        }
        Some(Command::Verify { provider, file, secret_env, header, url, at }) => {
            let asked = webhooks::Asked { provider, file, secrets: secret_env, header, url, at };
            webhooks::verify(&asked, &files, output)
        }
        Some(Command::Drill { id, to, probe, verify, timeout }) => {
            let policy = webhooks::policy(&verify, PolicyArgs::default(), &files);
            let asked = |policy| drill::Asked { which: id, to, probe, policy, timeout };
            policy.and_then(|policy| drill::run(&asked(policy), output))
        }
        Some(Command::Record { ids, out, follow, since, filter, limit }) => {
            let since = since.and_then(|since| since.parse::<Filter>().ok());
            let filter = since.into_iter().chain(filter).fold(Filter::default(), Filter::and);
            cassette::record(&cassette::Wanted { ids, out, follow, filter }, limit, output)
        }
        Some(Command::Providers { provider, markdown }) => providers::run(provider.as_ref(), markdown, output),
        Some(Command::Keys { what, provider }) => webhooks::keys(what, &provider, output),
        Some(Command::Inspect { verify, inspect }) => {
            let policy = webhooks::policy(&verify, PolicyArgs::default(), &files);
            policy.and_then(|policy| requests::inspect(&inspect, policy, output))
        }
        Some(Command::Login { url, relay_ca, token_file }) => {
            account::login(&cli.global, &url, relay_ca, token_file, output)
        }
        Some(Command::Logout) => account::logout(&cli.global, output),
        Some(Command::Doctor { target, relay }) => doctor::run(target.as_ref(), &relay, &files, output),
        Some(Command::Endpoints { what, name, relay }) => {
            let release = name.filter(|_| what == EndpointsCommand::Release);
            endpoints::run(release.as_deref(), &relay, &files, output)
        }
        Some(Command::Whoami { relay }) => account::whoami(&relay, &files, output),
        Some(Command::Config { what }) => match what {
            ConfigCommand::Path => account::config_path(&cli.global, output),
            ConfigCommand::Show => account::config_show(&cli.forward, &files, output),
            ConfigCommand::Check => account::config_check(&cli.forward, &files, output),
        },
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hookway", &mut script);
            // Who reads it may have enough.
            drop(output.bytes(&script));
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Manual { folder }) => {
            let failed =
                |error: std::io::Error| Failure::new(1, "the manual pages cannot be written").cause(error.to_string());
            clap_mangen::generate_to(Cli::command(), folder).map(|()| ExitCode::SUCCESS).map_err(failed)
        }
        Some(Command::Version) => {
            match output.is_json() {
                true => output.json(&serde_json::json!({"version": env!("CARGO_PKG_VERSION")})),
                false => output.line(concat!("hookway ", env!("CARGO_PKG_VERSION"))),
            }
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|failure| {
        output.fail(&failure);
        ExitCode::from(failure.code)
    })
}

/// Logs to stderr when asked, by `-v` or `RUST_LOG`.
fn log(args: &GlobalArgs) {
    let level = match args.verbose {
        0 => "off",
        1 => "hookway=debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}

/// One thread: handing small pieces of work between threads costs more than it gains.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(1, "the program cannot start").cause(error.to_string()))?;
    let done = runtime.block_on(work);
    // A name that is still being looked up, or a reader that has paused, must not keep the program.
    runtime.shutdown_background();
    done
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let what = error.to_string();
        match error {
            ConfigError::File { path, source } => {
                Self::new(7, what).cause(source.to_string()).next(format!("check that {path} is there and may be read"))
            }
            ConfigError::Wrong { .. } => Self::new(7, what)
                .cause("these lines cannot be read as settings")
                .next("mend them; every long flag is a key:  hookway --help"),
            ConfigError::TargetAndCommand => {
                Self::new(2, what).cause("a target means: forward to it").next("hookway TARGET, or hookway COMMAND")
            }
            ConfigError::NoToken { .. } => Self::new(4, what)
                .cause("a token begins with hwt_; nothing else is sent to a relay")
                .next("ask the relay's operator for one:  hookway-relay token create --name NAME"),
            ConfigError::NoSecret { cause, next, .. } => Self::new(7, what).cause(cause).next(next),
            ConfigError::WrongSecret { cause, page, .. } => {
                Self::new(7, what).cause(cause).next(format!("copy it again; see {page}"))
            }
            ConfigError::NoHome => {
                Self::new(7, what).cause("HOME is not set").next("set HOME, or name a file:  --config FILE")
            }
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::new(1, "the history cannot be used")
            .cause(error.sentence())
            .next("close what else uses it, or see what is wrong:  hookway -v requests list")
    }
}

impl From<WhichError> for Failure {
    fn from(error: WhichError) -> Self {
        let cause = match error {
            WhichError::None(_) => "it was never here, or was too old to be kept",
            WhichError::Several(..) => "a part of an id must be of one only",
        };
        Self::new(1, error.to_string()).cause(cause).next("see what there is:  hookway requests list")
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let what = error.to_string();
        match error {
            ConnectError::Unreachable { cause, relay } => {
                let next = match cause.contains("certificate") {
                    true => "if the relay has a CA of its own, ask its operator for the file:  --relay-ca FILE".into(),
                    false => {
                        format!(
                            "check the name, and that this network lets you through to {relay}; or name another:  --relay HOST[:PORT]"
                        )
                    }
                };
                Self::new(3, what).cause(cause).next(next)
            }
            ConnectError::Refused { code, reason, next } => {
                let (exit, cause) = match code {
                    Code::Token => (4, "the relay did not take this token"),
                    Code::Taken | Code::Name => (5, "the relay did not give the endpoint"),
                    _ => (3, "the relay refused"),
                };
                Self::new(exit, reason).cause(cause).next(next)
            }
            ConnectError::TakenOver { reason } => Self::new(5, "no endpoint is left to serve")
                .cause(reason)
                .next("use another name for this client:  hookway TARGET --name NAME"),
            ConnectError::Local { cause } => Self::new(7, what)
                .cause(cause)
                .next("check the CA file and the system's certificates:  hookway config check"),
        }
    }
}
