//! The client's configuration: defaults < user's file < project's file < environment < flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use etcetera::BaseStrategy;
use hookway_protocol::host::EndpointName;
use hookway_protocol::settings::{self, Problem};
use serde::{Deserialize, Serialize};

use crate::cli::{Cli, RelayArgs};
use crate::target::Target;

/// The project's file, in the working folder or one above.
const PROJECT: &str = "hookway.toml";
/// Flags that are no settings.
const NOT_SETTINGS: [&str; 9] = ["config", "json", "quiet", "verbose", "help", "version", "once", "until", "fail"];

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
    #[error("this account has no home folder to keep settings in")]
    NoHome,
}

/// What the files add to the command line.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// The endpoints of the project's file, with targets of their own.
    pub(crate) endpoints: Vec<ProjectEndpoint>,
    /// The relay and the token that `hookway login` kept. The token goes to that relay only, whatever a project says.
    pub(crate) login: Option<(String, String)>,
}

/// An `[[endpoint]]` of the project's file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ProjectEndpoint {
    pub(crate) name: String,
    pub(crate) target: Option<String>,
    #[serde(default)]
    pub(crate) route: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Tables {
    #[serde(default)]
    endpoint: Vec<ProjectEndpoint>,
}

/// The command line, completed from the files.
///
/// # Errors
/// The outer error is clap's, the inner one the files'.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Result<(Cli, Files), ConfigError>, clap::Error> {
    let command = Cli::command();
    let matches = command.clone().try_get_matches_from(&args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    let user = cli.global.config.as_ref().map_or_else(user_file, |path| Ok(path.clone()));
    // These make the file.
    let is_login = matches!(matches.subcommand_name(), Some("login" | "logout"));
    let (more, files) =
        match user.and_then(|user| read_files(&user, cli.global.config.is_some() && !is_login, &matches)) {
            Ok(read) => read,
            Err(ConfigError::NoHome) => Default::default(),
            Err(error) => return Ok(Err(error)),
        };
    let (mut all, given) = (args, matches.subcommand().map(|(_, sub)| sub.clone()));
    // `whoami` and the like take the relay's settings only.
    let takes = |flag: &OsString| match &given {
        None => true,
        Some(sub) => {
            let text = flag.to_string_lossy();
            let key = text.trim_start_matches("--").split('=').next().unwrap_or_default().replace('-', "_");
            sub.try_contains_id(&key).is_ok()
                && matches!(sub.value_source(&key), None | Some(ValueSource::DefaultValue))
        }
    };
    if matches.subcommand_name() == Some("config") {
        // It shows what forwarding would use.
        all.splice(1..1, more.iter().filter(|flag| flag.to_string_lossy().starts_with("--")).cloned());
    }
    all.extend(more.into_iter().filter(takes));
    Ok(Ok((Cli::from_arg_matches(&command.try_get_matches_from(all)?)?, files)))
}

/// Flags for what the files say and the command line and environment do not.
fn read_files(user: &Path, named: bool, given: &ArgMatches) -> Result<(Vec<OsString>, Files), ConfigError> {
    let command = Cli::command();
    let known: Vec<&str> =
        command.get_arguments().filter_map(clap::Arg::get_long).filter(|key| !NOT_SETTINGS.contains(key)).collect();
    let mut flags: BTreeMap<String, Vec<OsString>> = BTreeMap::new();
    let (mut files, mut kept) = (Files::default(), (None, None));
    for (path, is_project) in project_file().map(|path| (path, true)).into_iter().chain([(user.to_owned(), false)]) {
        let shown = path.display().to_string();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            // Only the usual file may be missing.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named && !is_project => continue,
            Err(source) => return Err(ConfigError::File { path: shown, source }),
        };
        let keys: Vec<&str> = known.iter().copied().chain(["target", "token"]).collect();
        let (settings, mut problems) = settings::read(&text, &keys, &["endpoint"]);
        for token in settings.iter().filter(|setting| is_project && setting.key == "token") {
            let message = "a token does not belong in a file that is shared; use:  hookway login RELAY".into();
            problems.push(Problem { line: token.line, message });
        }
        match toml::from_str::<Tables>(&text) {
            Ok(tables) => files.endpoints.extend(tables.endpoint),
            Err(error) if problems.is_empty() => {
                let line = 1 + text[..error.span().map_or(0, |span| span.start)].matches('\n').count();
                problems.push(Problem { line, message: error.message().to_owned() });
            }
            Err(_) => {}
        }
        for setting in settings {
            if setting.key == "token" {
                kept.1 = setting.values.first().cloned();
                continue;
            }
            if setting.key == "relay" && !is_project {
                kept.0 = setting.values.first().cloned();
            }
            let values: Vec<OsString> = match (setting.key.as_str(), setting.values.first().map(String::as_str)) {
                ("target", Some(target)) => vec![target.into()],
                ("strip-prefix", Some("true")) => vec!["--strip-prefix".into()],
                ("strip-prefix", _) => vec![],
                // Beside the file that names it, wherever the command is run.
                (key @ ("relay-ca" | "token-file"), Some(value)) => {
                    let file = path.parent().unwrap_or(Path::new("")).join(value);
                    vec![format!("--{key}={}", file.display()).into()]
                }
                (key, _) => setting.values.iter().map(|value| format!("--{key}={value}").into()).collect(),
            };
            let alone = command.clone().no_binary_name(true).try_get_matches_from(&values);
            if let Err(error) = alone {
                let text = error.to_string();
                let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
                problems.push(Problem { line: setting.line, message });
            }
            let source = given.value_source(&setting.key.replace('-', "_"));
            if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
                flags.entry(setting.key).or_insert(values);
            }
        }
        if !problems.is_empty() {
            problems.sort_by_key(|problem| problem.line);
            return Err(ConfigError::Wrong { path: shown, problems });
        }
    }
    files.login = kept.0.zip(kept.1);
    Ok((flags.into_values().flatten().collect(), files))
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

/// What `hookway login` keeps.
#[derive(Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Login {
    pub(crate) relay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) relay_ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Whatever else stands in the file stays.
    #[serde(flatten)]
    pub(crate) rest: toml::Table,
}

/// Changes the user's file, which only its owner may read. Without a change nothing is written.
pub(crate) fn change_login(path: &Path, change: impl FnOnce(&mut Login)) -> Result<(), ConfigError> {
    let file = |source| ConfigError::File { path: path.display().to_string(), source };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(file(error)),
    };
    let mut login: Login = toml::from_str(&text).map_err(|error| file(std::io::Error::other(error.to_string())))?;
    let before = login.clone();
    change(&mut login);
    if login == before {
        return Ok(());
    }
    let text = toml::to_string(&login).map_err(|error| file(std::io::Error::other(error)))?;
    write_private(path, &text).map_err(file)
}

/// Writes a file whole or not at all, for its owner's eyes.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
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

impl RelayArgs {
    /// The token: from a file, the environment, or the login.
    pub(crate) fn token(&self, files: &Files) -> Result<Option<String>, ConfigError> {
        if let Some(path) = &self.token_file {
            return read_token(path).map(Some);
        }
        Ok(std::env::var("HOOKWAY_TOKEN").ok().filter(|token| !token.is_empty()).or_else(|| self.kept_token(files)))
    }
}

impl RelayArgs {
    fn kept_token(&self, files: &Files) -> Option<String> {
        let (relay, token) = files.login.as_ref()?;
        (relay.parse().ok() == self.relay).then(|| token.clone())
    }
}

/// A token from a file, white space around it aside.
pub(crate) fn read_token(path: &Path) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| ConfigError::File { path: path.display().to_string(), source })?;
    Ok(text.trim().to_owned())
}

/// A name, its target and its routes.
pub(crate) type ParsedEndpoint = (EndpointName, Option<Target>, Vec<(String, Target)>);

impl ProjectEndpoint {
    /// Its name, target and routes.
    pub(crate) fn parsed(&self) -> Result<ParsedEndpoint, String> {
        let name = self.name.parse::<EndpointName>().map_err(|error| error.to_string())?;
        let target = self.target.as_deref().map(str::parse::<Target>).transpose().map_err(|error| error.to_string())?;
        let routes = self.route.iter().map(|route| {
            let (prefix, target) = route.split_once('=').ok_or("a route is PATH=TARGET")?;
            Ok((prefix.to_owned(), target.parse::<Target>().map_err(|error| error.to_string())?))
        });
        Ok((name, target, routes.collect::<Result<_, String>>()?))
    }
}
