//! The client's configuration: defaults < user's file < project's file < environment < flags.

mod verify;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, FromArgMatches};
use etcetera::BaseStrategy;
use hookway_protocol::host::EndpointName;
use hookway_protocol::message::Domain;
use hookway_protocol::settings::{self, Problem, Setting};
use serde::Deserialize;

use crate::cli::{Cli, Command, ConfigCommand, RelayArgs, domain, route};
use crate::private;
use crate::queueing::Queueing;
use crate::signature::Known as Provider;
use crate::target::Target;
use crate::tunnel::RelayAddress;

pub(crate) use verify::{Verify, provider};

/// The project's file, in the working folder or one above.
const PROJECT: &str = "hookway.toml";
/// Flags that are no settings.
const NOT_SETTINGS: [&str; 10] =
    ["config", "json", "quiet", "verbose", "help", "version", "once", "until", "fail", "open"];

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot use {path}")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} has something to mend:\n{}", .problems.iter().map(|p| format!("    {p}")).collect::<Vec<_>>().join("\n"))]
    Wrong { path: String, problems: Vec<Problem> },
    #[error("a target and a command do not go together")]
    TargetAndCommand,
    #[error("{from} holds no token")]
    NoToken { from: String },
    #[error("this account has no home folder to keep settings in")]
    NoHome,
    #[error("there is no secret for {provider} in {name}")]
    NoSecret { name: String, provider: &'static str, cause: String, next: String },
    #[error("what {name} holds is no secret of {title}")]
    WrongSecret { name: String, title: &'static str, cause: &'static str, page: &'static str },
}

/// What the files say beside settings.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// The endpoints of the project's file, with targets of their own.
    pub(crate) endpoints: Vec<ProjectEndpoint>,
    /// The secrets that deliveries are checked with.
    pub(crate) verify: Vec<Verify>,
    /// The relay that the project's file names.
    project: Known,
    /// The relay of the user's file, which `hookway login` makes. Its token goes there only, whatever a project says.
    user: Known,
}

/// A relay, and what a file says belongs to it.
#[derive(Default)]
struct Known {
    relay: Option<RelayAddress>,
    ca: Option<PathBuf>,
    token: Option<String>,
    token_file: Option<PathBuf>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("relay", &self.relay).field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// An endpoint of the project's file: where its deliveries go.
#[derive(Clone, Debug)]
pub(crate) struct ProjectEndpoint {
    pub(crate) name: EndpointName,
    pub(crate) target: Option<Target>,
    pub(crate) routes: Vec<(String, Target)>,
    /// The developer's own host names for it.
    pub(crate) domains: Vec<Domain>,
    pub(crate) queueing: Queueing,
}

/// An `[[endpoint]]` as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct EndpointTable {
    name: String,
    target: Option<String>,
    #[serde(default)]
    route: Vec<String>,
    #[serde(default)]
    domain: Vec<String>,
    #[serde(default)]
    on_offline: Vec<String>,
    #[serde(default)]
    ack: Vec<String>,
    retry_5xx: Option<bool>,
}

#[derive(Default, Deserialize)]
struct Tables {
    #[serde(default)]
    endpoint: Vec<toml::Spanned<EndpointTable>>,
    #[serde(default)]
    verify: Option<toml::Spanned<toml::Value>>,
}

/// The command line, completed from the files if the command uses them.
///
/// # Errors
/// The outer error is clap's, the inner one the files'.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Result<(Cli, Files), ConfigError>, clap::Error> {
    let command = settings::without_empty_variables(Cli::command());
    let matches = command.clone().try_get_matches_from(&args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    if cli.command.is_some() && cli.forward.target.is_some() {
        return Ok(Err(ConfigError::TargetAndCommand));
    }
    let uses_files = match (matches.subcommand_name(), &cli.command) {
        (_, Some(Command::Config { what })) => *what != ConfigCommand::Path,
        (name, _) => matches!(
            name,
            None | Some("whoami" | "doctor" | "endpoints" | "dev" | "replay" | "inspect" | "send" | "drill" | "verify")
        ),
    };
    if !uses_files {
        return Ok(Ok((cli, Files::default())));
    }
    let user = cli.global.config.as_ref().map_or_else(user_file, |path| Ok(path.clone()));
    let (settings, files) = match user.and_then(|user| read_files(&user, cli.global.config.is_some())) {
        Ok(read) => read,
        Err(ConfigError::NoHome) => Default::default(),
        Err(error) => return Ok(Err(error)),
    };
    let command = settings::defaults(command, &settings);
    Ok(Ok((Cli::from_arg_matches(&command.try_get_matches_from(args)?)?, files)))
}

/// The settings of both files, the project's before the user's.
fn read_files(user: &Path, named: bool) -> Result<(Vec<Setting>, Files), ConfigError> {
    let (mut all, mut files) = (Vec::new(), Files::default());
    for (path, is_project) in project_file().map(|path| (path, true)).into_iter().chain([(user.to_owned(), false)]) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            // Only the usual file may be missing.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named && !is_project => continue,
            Err(source) => return Err(ConfigError::File { path: path.display().to_string(), source }),
        };
        let mut problems = Vec::new();
        let settings = read_settings(&text, is_project, &mut problems);
        read_tables(&text, &path, is_project, &mut files, &mut problems);
        if !problems.is_empty() {
            problems.sort_by_key(|problem| problem.line);
            return Err(ConfigError::Wrong { path: path.display().to_string(), problems });
        }
        let known = if is_project { &mut files.project } else { &mut files.user };
        for setting in settings {
            let value = setting.values.first().cloned();
            // Beside the file that names it, wherever the command is run.
            let beside = value.as_ref().map(|value| path.parent().unwrap_or(Path::new("")).join(value));
            match setting.key.as_str() {
                "token" => known.token = value,
                "token-file" => known.token_file = beside,
                "relay-ca" => known.ca = beside,
                "relay" => {
                    known.relay = value.and_then(|value| value.parse().ok());
                    all.push(setting);
                }
                _ => all.push(setting),
            }
        }
    }
    Ok((all, files))
}

/// The settings of one file, and what is wrong with them.
fn read_settings(text: &str, is_project: bool, problems: &mut Vec<Problem>) -> Vec<Setting> {
    let command = Cli::command();
    let flags = [Some(&command), command.find_subcommand("dev")].into_iter().flatten();
    let known: Vec<&str> = flags
        .flat_map(clap::Command::get_arguments)
        .filter_map(clap::Arg::get_long)
        .filter(|key| !NOT_SETTINGS.contains(key))
        .chain(["target", "token"])
        .collect();
    let (settings, wrong) = settings::read(text, &known, &["endpoint", "verify"]);
    problems.extend(wrong);
    let names_relay = settings.iter().any(|setting| setting.key == "relay");
    for setting in &settings {
        let checked = match setting.key.as_str() {
            // Whoever wrote a project's file must not choose which of the reader's files go to a relay.
            "token" | "token-file" if is_project => {
                Err("a token does not belong in a file that is shared; use:  hookway login RELAY".into())
            }
            "relay-ca" if is_project && !names_relay => {
                Err("`relay-ca` stands beside the `relay` it is for; this file names none".into())
            }
            "token" => Ok(()),
            _ => settings::check(&command, setting),
        };
        problems.extend(checked.err().map(|message| Problem { line: setting.line, message }));
    }
    settings
}

/// The `[[endpoint]]` and `[[verify]]` tables of one file, and what is wrong with them.
fn read_tables(text: &str, path: &Path, is_project: bool, files: &mut Files, problems: &mut Vec<Problem>) {
    let folder = path.parent().unwrap_or(Path::new(""));
    match toml::from_str::<Tables>(text) {
        Ok(tables) => {
            let mut problem =
                |at: usize, message| problems.push(Problem { line: settings::line_of(text, at), message });
            for table in tables.endpoint {
                let at = table.span().start;
                match table.into_inner().parse() {
                    Ok(endpoint) => files.endpoints.push(endpoint),
                    Err(message) => problem(at, message),
                }
            }
            let verify = tables.verify.map(|verify| Verify::read_all(text, verify, folder, is_project));
            for read in verify.into_iter().flatten() {
                match read {
                    Ok(verify) => files.verify.push(verify),
                    Err((at, message)) => problem(at, message),
                }
            }
        }
        Err(error) if problems.is_empty() => {
            let line = settings::line_of(text, error.span().map_or(0, |span| span.start));
            problems.push(Problem { line, message: error.message().to_owned() });
        }
        // What is no TOML was said already.
        Err(_) => {}
    }
}

fn project_file() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors().map(|folder| folder.join(PROJECT)).find(|path| path.is_file())
}

/// The folder that stands for the project: the one with its file, else the working folder.
fn project_folder() -> Option<PathBuf> {
    project_file().and_then(|file| Some(file.parent()?.to_owned())).or_else(|| std::env::current_dir().ok())
}

/// The user's file.
pub(crate) fn user_file() -> Result<PathBuf, ConfigError> {
    let folders = etcetera::choose_base_strategy().map_err(|_| ConfigError::NoHome)?;
    Ok(folders.config_dir().join("hookway").join("config.toml"))
}

/// The folder for what the client remembers.
pub(crate) fn data_dir() -> Result<PathBuf, ConfigError> {
    let folders = etcetera::choose_base_strategy().map_err(|_| ConfigError::NoHome)?;
    Ok(folders.data_dir().join("hookway"))
}

/// Makes a file of 32 random bytes that only its owner may read: whole, or not at all. What is in it, if it was there
/// already.
pub(crate) fn create_key(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(Path::new(""));
    private::folder(folder)?;
    let mut secret = vec![0; 32];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| std::io::Error::other("no random bytes"))?;
    // For its owner only, as temporary files are.
    let mut file = tempfile::Builder::new().prefix("key-").tempfile_in(folder)?;
    file.write_all(&secret)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(secret),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => std::fs::read(path),
        Err(error) => Err(error.error),
    }
}

/// Changes the user's file, which only its owner may read. Whatever else stands in it stays, comments too; without a
/// change nothing is written.
pub(crate) fn change_user_file(
    path: &Path,
    change: impl FnOnce(&mut toml_edit::DocumentMut),
) -> Result<(), ConfigError> {
    // A link to where the settings are kept stays one, also when nothing is there yet.
    let linked = || std::fs::read_link(path).ok().and_then(|to| Some(path.parent()?.join(to)));
    let path = &std::fs::canonicalize(path).ok().or_else(linked).unwrap_or_else(|| path.to_owned());
    let file = |source| ConfigError::File { path: path.display().to_string(), source };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(file(error)),
    };
    let mut document: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| file(std::io::Error::other(error.to_string())))?;
    change(&mut document);
    let changed = document.to_string();
    if changed == text { Ok(()) } else { write_private(path, &changed).map_err(file) }
}

/// Writes a file whole or not at all, for its owner's eyes.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        private::folder(folder)?;
    }
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = private::options().write(true).create_new(true).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

/// The name that this project was given before by this relay.
pub(crate) fn remembered_name(relay: &str) -> Option<EndpointName> {
    names()?.get(&key(relay)?)?.parse().ok()
}

/// Keeps the name for this project's next start.
pub(crate) fn remember_name(relay: &str, name: &str) -> Result<(), ConfigError> {
    let (Some(key), path) = (key(relay), data_dir()?.join("names.json")) else { return Ok(()) };
    let mut names = names().unwrap_or_default();
    if names.get(&key).is_some_and(|kept| kept == name) {
        return Ok(());
    }
    names.insert(key, name.to_owned());
    let text = serde_json::to_string_pretty(&names).unwrap_or_default();
    write_private(&path, &text).map_err(|source| ConfigError::File { path: path.display().to_string(), source })
}

fn names() -> Option<BTreeMap<String, String>> {
    serde_json::from_slice(&std::fs::read(data_dir().ok()?.join("names.json")).ok()?).ok()
}

fn key(relay: &str) -> Option<String> {
    Some(format!("{relay} {}", project_folder()?.display()))
}

impl Files {
    /// The provider as a file describes it, if it is one that only files describe.
    pub(crate) fn described(&self, provider: &Provider, path: &str) -> Provider {
        let same = self.verify.iter().filter(|verify| verify.provider.facts().name == provider.facts().name);
        let found = same.clone().find(|verify| verify.is_for(None, path)).or_else(|| same.clone().next());
        found.map_or_else(|| provider.clone(), |verify| verify.provider.clone())
    }
}

impl RelayArgs {
    /// The token: from the file that a flag or variable names, the environment, or the user's file.
    pub(crate) fn token(&self, files: &Files) -> Result<Option<String>, ConfigError> {
        if let Some(path) = &self.token_file {
            return read_token(path).map(Some);
        }
        if let Some(token) = std::env::var("HOOKWAY_TOKEN").ok().filter(|token| !token.is_empty()) {
            return usable_token(&token, "HOOKWAY_TOKEN").map(Some);
        }
        match &files.user {
            _ if !self.may_have_token(files) => Ok(None),
            Known { token_file: Some(path), .. } => read_token(path).map(Some),
            Known { token: Some(token), .. } => usable_token(token, "the login").map(Some),
            _ => Ok(None),
        }
    }

    /// The CA: the one named for this command, or the one that a file names for the relay.
    pub(crate) fn ca(&self, files: &Files) -> Option<PathBuf> {
        let of_project = files.project.ca.as_ref().filter(|_| self.relay == files.project.relay);
        let of_user = || files.user.ca.as_ref().filter(|_| self.is_of_user(files));
        self.relay_ca.as_ref().or(of_project).or_else(of_user).cloned()
    }

    /// Whether the relay is the one of the user's file. One that names none means any but a project's.
    fn is_of_user(&self, files: &Files) -> bool {
        match &files.user.relay {
            None => self.relay != files.project.relay,
            relay => self.relay == *relay,
        }
    }

    /// Whether the user's token may go to the relay: to the user's own, and not by way of another CA that a project
    /// names for it.
    fn may_have_token(&self, files: &Files) -> bool {
        let content = |path: Option<&PathBuf>| path.and_then(|path| std::fs::read(path).ok());
        let ca = self.ca(files);
        let of_project = self.relay_ca.is_none() && ca.is_some() && ca == files.project.ca;
        self.is_of_user(files) && (!of_project || content(ca.as_ref()) == content(files.user.ca.as_ref()))
    }
}

/// A token from a file, white space around it aside.
pub(crate) fn read_token(path: &Path) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| ConfigError::File { path: path.display().to_string(), source })?;
    usable_token(text.trim(), &path.display().to_string())
}

/// The token, if it has a token's form: nothing else of the reader's goes to a relay.
pub(crate) fn usable_token(text: &str, from: &str) -> Result<String, ConfigError> {
    let characters = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let fits = text.starts_with("hwt_") && text.len() <= 200 && text.bytes().all(characters);
    fits.then(|| text.to_owned()).ok_or_else(|| ConfigError::NoToken { from: from.to_owned() })
}

impl EndpointTable {
    fn parse(self) -> Result<ProjectEndpoint, String> {
        let name = self.name.parse::<EndpointName>().map_err(|error| format!("`{}`: {error}", self.name))?;
        let target = self.target.as_deref().map(str::parse::<Target>).transpose();
        let target = target.map_err(|error| format!("the target of `{name}`: {error}"))?;
        let routes = self.route.iter().map(|text| route(text)).collect::<Result<_, String>>();
        let routes = routes.map_err(|error| format!("a route of `{name}`: {error}"))?;
        let domains = self.domain.iter().map(|text| match domain(text)? {
            domain if domain.endpoint.is_empty() => Ok(domain),
            _ => Err("it is HOST alone: it stands at its endpoint".into()),
        });
        let domains = domains.collect::<Result<_, String>>();
        let domains = domains.map_err(|error| format!("a domain of `{name}`: {error}"))?;
        let on_offline = self.on_offline.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        let ack = self.ack.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        let queueing = Queueing {
            on_offline: on_offline.map_err(|error: String| format!("on-offline of `{name}`: {error}"))?,
            ack: ack.map_err(|error: String| format!("ack of `{name}`: {error}"))?,
            retry_5xx: self.retry_5xx,
        };
        Ok(ProjectEndpoint { name, target, routes, domains, queueing })
    }
}
