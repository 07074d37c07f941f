//! What each command does.

mod account;
#[cfg(feature = "dev")]
mod dev;
mod forward;
mod history;
mod replay;
mod requests;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::{Cli, Command, ConfigCommand, GlobalArgs};
use crate::config::{self, ConfigError};
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
        Some(Command::Dev { target, demo, name, host_header, http, https, history, inspect, once }) => {
            dev::run(dev::Dev { target, demo, name, host_header, http, https, history, inspect, once }, output)
        }
        Some(Command::Requests { find, what }) => requests::run(&find, what, output),
        Some(Command::Replay { ids, failed, since, to, edit, header, times, timeout }) => {
            let which = if failed { replay::Chosen::Failed { since } } else { replay::Chosen::These(ids) };
            replay::run(&replay::Asked { which, to, edit, header, times, timeout }, output)
        }
        Some(Command::Inspect { inspect }) => requests::inspect(&inspect, output),
        Some(Command::Login { url, relay_ca, token_file }) => {
            account::login(&cli.global, &url, relay_ca, token_file, output)
        }
        Some(Command::Logout) => account::logout(&cli.global, output),
        Some(Command::Whoami { relay }) => account::whoami(&relay, &files, output),
        Some(Command::Config { what }) => match what {
            ConfigCommand::Path => account::config_path(&cli.global, output),
            ConfigCommand::Show => account::config_show(&cli.forward, &files, output),
            ConfigCommand::Check => account::config_check(&cli.forward, &files, output),
        },
        Some(Command::Completions { shell }) => {
            clap_complete::generate(shell, &mut Cli::command(), "hookway", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
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
                        format!("check the name and that UDP reaches {relay}; or name another:  --relay HOST[:PORT]")
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
