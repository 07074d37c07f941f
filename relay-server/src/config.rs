//! The relay's configuration: defaults < file < environment < flags, as one typed value.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::{Command, CommandFactory, FromArgMatches};
use hookway_protocol::host::Host;
use hookway_protocol::settings;

use crate::certs::acme;
use crate::cli::{AcmeArgs, AcmeChallenge, Cli, RunArgs, Tls};
use crate::{admin, certs, limits, public, queue, tunnel};

/// Everything a relay needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Endpoints are host names directly below this one.
    pub domain: Host<'static>,
    /// Where the relay keeps what survives a restart.
    pub data_dir: PathBuf,
    /// How long work in flight may take when the relay stops.
    pub grace: Duration,
    /// Senders.
    pub public: public::Config,
    /// Clients.
    pub tunnel: tunnel::Config,
    /// What endpoints and tokens may use.
    pub limits: limits::Config,
    /// Deliveries that wait.
    pub queue: queue::Config,
    /// Certificates.
    pub certs: certs::Config,
    /// The operator.
    pub admin: admin::Config,
}

impl Config {
    /// A relay with the defaults of every part.
    #[must_use]
    pub fn new(domain: Host<'static>, data_dir: PathBuf) -> Self {
        Self {
            domain,
            data_dir,
            grace: Duration::from_secs(30),
            public: public::Config::default(),
            tunnel: tunnel::Config::default(),
            limits: limits::Config::default(),
            queue: queue::Config::default(),
            certs: certs::Config::SelfSigned,
            admin: admin::Config::default(),
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is wrong with it, all of it.
    #[error("{path} has {} to mend:\n{}", count(problems), list(problems))]
    Wrong {
        /// The file.
        path: String,
        /// Each problem.
        problems: Vec<settings::Problem>,
        /// What they have in common.
        #[source]
        cause: Reason,
    },
    /// A file with a key cannot be read.
    #[error("cannot read the MAC key {path}")]
    NoKeyFile {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file with a key holds something else.
    #[error("{path} holds no key in base64url")]
    NoKey {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A setting that must be there is not.
    #[error("{what}")]
    Missing {
        /// Which.
        what: &'static str,
        /// What it is for.
        #[source]
        cause: Reason,
        /// How to set it.
        next: &'static str,
    },
}

/// Why something is wanted, in words.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Reason(&'static str);

impl ConfigError {
    /// What to do about it.
    #[must_use]
    pub const fn next(&self) -> &'static str {
        match self {
            Self::NoKeyFile { .. } => "check --acme-eab-key-file and the file's rights",
            Self::NoKey { .. } => "put the key there as the CA hands it out",
            Self::Unreadable { .. } => "check the path and its rights, or leave --config out",
            Self::Wrong { .. } => "mend these lines; every setting is listed by:  hookway-relay run --help",
            Self::Missing { next, .. } => next,
        }
    }
}

fn count(problems: &[settings::Problem]) -> String {
    if problems.len() == 1 { "1 line".into() } else { format!("{} lines", problems.len()) }
}

fn list(problems: &[settings::Problem]) -> String {
    problems.iter().map(|problem| format!("    {problem}")).collect::<Vec<_>>().join("\n")
}

/// The command line with the settings of the configuration file put in where neither a flag nor the environment
/// says otherwise.
///
/// # Errors
/// The outer error is clap's, for the command line; the inner one the file's.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Result<Cli, ConfigError>, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let command = settings::without_empty_variables(Cli::command());
    let matches = command.clone().try_get_matches_from(&args)?;
    let mut innermost = &matches;
    while let Some((_, sub)) = innermost.subcommand() {
        innermost = sub;
    }
    let Some(path) = innermost.try_get_one::<PathBuf>("config").ok().flatten() else {
        return Ok(Ok(Cli::from_arg_matches(&matches)?));
    };
    let settings = match from_file(path) {
        Ok(settings) => settings,
        Err(error) => return Ok(Err(error)),
    };
    let command = settings::defaults(command, &settings);
    Ok(Ok(Cli::from_arg_matches(&command.try_get_matches_from(args)?)?))
}

/// The domain that a configuration file names.
#[must_use]
pub fn domain_in(path: &Path) -> Option<String> {
    let settings = from_file(path).ok()?;
    settings.into_iter().find(|setting| setting.key == "domain")?.values.into_iter().next()
}

/// What the file says. A command that knows fewer settings than `run` reads the same file.
fn from_file(path: &Path) -> Result<Vec<settings::Setting>, ConfigError> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: shown.clone(), source })?;
    let all = Cli::command();
    let run = all.find_subcommand("run").expect("there is a run command");
    let (settings, mut problems) = settings::read(&text, &Cli::command_keys(run), &[]);
    for setting in &settings {
        if let Err(message) = settings::check(run, setting) {
            problems.push(settings::Problem { line: setting.line, message });
        }
    }
    problems.sort_by_key(|problem| problem.line);
    if problems.is_empty() {
        return Ok(settings);
    }
    let cause = Reason("a setting is unknown, or has a value it cannot have");
    Err(ConfigError::Wrong { path: shown, problems, cause })
}

impl RunArgs {
    /// The typed configuration.
    ///
    /// # Errors
    /// A setting that must be there is not.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let domain = self.domain.clone().ok_or(ConfigError::Missing {
            what: "no domain is set",
            cause: Reason("endpoints are host names below a domain"),
            next: "--domain hooks.example.com, or --config FILE, where it is set",
        })?;
        let certs = match (self.tls, &self.tls_cert, &self.tls_key) {
            (Tls::SelfSigned, ..) => certs::Config::SelfSigned,
            (Tls::Files, Some(cert), Some(key)) => certs::Config::Files { cert: cert.clone(), key: key.clone() },
            (Tls::Acme, ..) => certs::Config::Acme(Box::new(self.acme.config(self.http.0.is_some())?)),
            (Tls::Files, ..) => {
                return Err(ConfigError::Missing {
                    what: "--tls files names no files",
                    cause: Reason("a certificate and its key are read from two files"),
                    next: "hookway-relay run --tls files --tls-cert FILE --tls-key FILE",
                });
            }
        };
        if self.proxy_protocol && self.trusted_proxy.is_empty() {
            return Err(ConfigError::Missing {
                what: "--proxy-protocol trusts nobody",
                cause: Reason("anybody could say that a connection is somebody else's"),
                next: "name the load balancers with --trusted-proxy CIDR",
            });
        }
        Ok(Config {
            domain,
            data_dir: self.store.data_dir.clone(),
            grace: self.grace,
            certs,
            admin: admin::Config { admin: self.admin.0 },
            public: public::Config {
                https: self.https,
                http: self.http.0,
                http_serve: self.http_serve,
                public_port: self.public_port,
                default_endpoint: None,
                max_head: usize::try_from(self.max_head).unwrap_or(usize::MAX),
                max_body: self.max_body,
                body_memory: usize::try_from(self.body_memory).unwrap_or(usize::MAX),
                header_timeout: self.header_timeout,
                body_timeout: self.body_timeout,
                min_body_rate: self.min_body_rate,
                write_timeout: self.write_timeout,
                idle_timeout: self.idle_timeout,
                max_streams: self.max_streams,
                max_connections: self.max_connections,
                max_connections_per_ip: self.max_connections_per_ip,
                trusted_proxy: self.trusted_proxy.clone(),
                proxy_protocol: self.proxy_protocol,
                deny: self.deny.clone(),
                abuse_contact: self.abuse_contact.clone(),
                webhooks_only: self.webhooks_only,
                allow_indexing: self.allow_indexing,
                access_log: self.access_log.0.clone(),
            },
            tunnel: tunnel::Config {
                handshake_timeout: self.handshake_timeout,
                max_handshakes: self.max_handshakes,
                max_handshakes_per_ip: self.max_handshakes_per_ip,
                max_endpoints: self.max_endpoints,
                max_sessions: self.max_sessions,
                max_names: self.max_names,
                reply_timeout: self.reply_timeout,
                resolver: self.resolver,
            },
            limits: limits::Config {
                rate: self.rate,
                max_concurrent: self.max_concurrent,
                token_rate: self.token_rate,
                token_max_concurrent: self.token_max_concurrent,
            },
            queue: queue::Config {
                max_count: self.queue_max_count,
                max_bytes: usize::try_from(self.queue_max_bytes).unwrap_or(usize::MAX),
                token_max_count: self.queue_token_max_count,
                token_max_bytes: usize::try_from(self.queue_token_max_bytes).unwrap_or(usize::MAX),
                max_body: self.queue_max_body,
                retention: self.queue_retention,
                dead_retention: self.dead_letter_retention,
                disk_reserve: self.disk_reserve,
            },
        })
    }
}

impl AcmeArgs {
    /// Whether what is set for ACME goes together.
    fn fits(&self, has_http: bool) -> Result<(), ConfigError> {
        let wrong = |what, cause, next| Err(ConfigError::Missing { what, cause: Reason(cause), next });
        if self.staging && self.directory.is_some() {
            let cause = "--acme-staging stands for a directory of its own";
            return wrong("--acme-directory and --acme-staging name two CAs", cause, "leave one of them out");
        }
        if self.eab_kid.is_some() != self.eab_key_file.is_some() {
            let cause = "the CA gives an id and a key for an account";
            let next = "hookway-relay run --acme-eab-kid KID --acme-eab-key-file FILE";
            return wrong("--acme-eab-kid and --acme-eab-key-file belong together", cause, next);
        }
        if self.dns_update.is_some() && self.dns_hook.is_some() {
            let cause = "either is a way to make the record that the CA looks for";
            return wrong("--dns-update and --dns-hook are two ways for one thing", cause, "leave one of them out");
        }
        if self.dns_update.is_some() != self.dns_tsig_file.is_some() {
            let cause = "a name server takes updates that are signed with a key it knows";
            let next = "tsig-keygen -a hmac-sha256 hookway > FILE, and --dns-update HOST --dns-tsig-file FILE";
            return wrong("--dns-update and --dns-tsig-file belong together", cause, next);
        }
        if self.challenge != AcmeChallenge::Dns && (self.dns_update.is_some() || self.dns_hook.is_some()) {
            let cause = "no other challenge looks at a record";
            let next = "leave out --acme-challenge, or --dns-update and --dns-hook";
            return wrong("--dns-update and --dns-hook are for --acme-challenge dns-01", cause, next);
        }
        if self.challenge == AcmeChallenge::Http && !has_http {
            let next = "hookway-relay run --http 0.0.0.0:80, or another --acme-challenge";
            return wrong("the CA cannot look at the names: --http is off", "http-01 is answered on port 80", next);
        }
        Ok(())
    }

    /// Which CA, and how names are shown to be ours.
    fn config(&self, has_http: bool) -> Result<acme::Config, ConfigError> {
        self.fits(has_http)?;
        let binding = match (&self.eab_kid, &self.eab_key_file) {
            (Some(kid), Some(file)) => {
                let shown = file.display().to_string();
                let text = std::fs::read_to_string(file)
                    .map_err(|source| ConfigError::NoKeyFile { path: shown.clone(), source })?;
                let key = BASE64_URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('='));
                let key = key.map_err(|source| ConfigError::NoKey { path: shown, source: Box::new(source) })?;
                Some(acme::Binding { kid: kid.clone(), key })
            }
            _ => None,
        };
        let proof = match (self.challenge, &self.dns_update, &self.dns_tsig_file, &self.dns_hook) {
            (AcmeChallenge::Dns, Some(server), Some(key_file), _) => {
                let (server, key_file) = (server.clone(), key_file.clone());
                acme::Proof::Update { server, key_file, wait: self.dns_wait }
            }
            (AcmeChallenge::Dns, .., Some(command)) => {
                acme::Proof::Hook { command: command.clone(), wait: self.dns_wait }
            }
            (AcmeChallenge::Dns, ..) => acme::Proof::Own(self.dns),
            (AcmeChallenge::Http, ..) => acme::Proof::Http,
            (AcmeChallenge::TlsAlpn, ..) => acme::Proof::TlsAlpn,
        };
        let usual = if self.staging { acme::STAGING } else { acme::PRODUCTION };
        Ok(acme::Config {
            directory: self.directory.clone().unwrap_or_else(|| usual.to_owned()),
            email: self.email.clone(),
            ca: self.ca.clone(),
            binding,
            proof,
            http: has_http,
        })
    }
}

impl Cli {
    /// The settings of a command: its long flags, but for those that make no sense in a file.
    fn command_keys(command: &Command) -> Vec<&str> {
        let not_settings =
            ["config", "help", "version", "json", "name", "endpoints", "expires", "endpoint", "all", "hold"];
        command.get_arguments().filter_map(clap::Arg::get_long).filter(|key| !not_settings.contains(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn run(args: &[&str], file: &str) -> Result<RunArgs, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("relay.toml");
        std::fs::write(&path, file).expect("a file");
        let path = path.display().to_string();
        let args =
            ["hookway-relay", "run", "--config", &path].into_iter().chain(args.iter().copied()).map(OsString::from);
        let cli = parse(args).map_err(|e| e.to_string())?.map_err(|e| e.to_string().replace(&path, "FILE"))?;
        match cli.command {
            cli::Command::Run(run) => Ok(*run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_defaults() {
        let file = "domain = 'file.test'\nmax-body = '2MiB'\nrate = 'off'\nhttp-serve = true\n";
        let args = run(&["--domain", "flag.test"], file).expect("good settings");
        let config = args.config().expect("a config");
        assert_eq!(config.domain.as_str(), "flag.test");
        assert_eq!((config.public.max_body, config.public.http_serve), (2 << 20, true));
        assert_eq!(config.limits.rate, limits::Rate::OFF);
        assert_eq!(config.public.header_timeout, Duration::from_secs(10));
    }

    #[test]
    fn every_command_reads_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("relay.toml");
        let parse = |file: &str, words: &[&str]| {
            std::fs::write(&path, file).expect("a file");
            let args = words.iter().map(OsString::from).chain(["--config".into(), path.clone().into()]);
            parse(args).expect("a command line").map(|cli| cli.command)
        };
        let list = ["hookway-relay", "token", "list"];
        match parse("data-dir = '/from/file'\nrate = 'off'", &list) {
            Ok(cli::Command::Token { command: cli::TokenCommand::List { store } }) => {
                assert_eq!(store.data_dir, Path::new("/from/file"));
            }
            other => panic!("{other:?}"),
        }
        assert!(parse("nonsense", &list).is_err());
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let error = run(&[], "domian = 'a.test'\nmax-body = 'much'\n\nhttp-serve = 3\n").expect_err("wrong");
        assert!(
            error.starts_with("FILE has 3 lines to mend:\n    line 1: unknown key `domian`; did you mean `domain`?"),
            "{error}"
        );
        assert!(error.contains("line 2: invalid value 'much' for '--max-body"), "{error}");
        assert!(error.contains("line 4: `http-serve` is true or false"), "{error}");
    }

    #[test]
    fn the_example_is_the_defaults() {
        let example = include_str!("../../deploy/relay.example.toml");
        let from_example = run(&[], example).expect("the example is good").config().expect("a config");
        // Every setting stands in it, commented out with its default or set.
        let all = Cli::command();
        let run_command = all.find_subcommand("run").expect("a run command");
        for key in Cli::command_keys(run_command) {
            let stands = example.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            assert!(stands, "{key} is not in deploy/relay.example.toml");
        }
        assert_eq!(from_example.domain.as_str(), "hooks.example.com");
        let uncommented: String = example
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest.split(" = ").next().is_some_and(|key| Cli::command_keys(run_command).contains(&key)) =>
                {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let mut all_set =
            run(&[], &uncommented).expect("what is commented out is good, too").config().expect("a config");
        // Their defaults are no values to write down.
        assert_eq!(all_set.public.public_port.take(), Some(443));
        assert!(all_set.public.abuse_contact.take().is_some());
        assert!(all_set.tunnel.resolver.take().is_some());
        let shown =
            |config: &Config| format!("{:?} {:?} {:?} {:?}", config.public, config.tunnel, config.limits, config.queue);
        assert_eq!(shown(&all_set), shown(&from_example), "what is commented out are the defaults");
    }
}
