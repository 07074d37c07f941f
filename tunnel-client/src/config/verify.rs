//! Secrets to check signatures with: where they are from, and for which deliveries.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hookway_protocol::host::EndpointName;
use hookway_protocol::settings::{duration, nearest};
use http::HeaderName;
use serde::Deserialize;

use super::ConfigError;
use crate::signature::{Encoding, Hmac, Known, Mac, Rule, takes_path};

/// A secret that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Verify {
    pub(crate) provider: Known,
    source: Source,
    endpoint: Option<EndpointName>,
    path: Option<String>,
    /// Whether a file asks for it: who shares a project need not have all its secrets.
    pub(crate) of_file: bool,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Variable(String),
    File(PathBuf),
    Keyring(String),
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.provider.facts().name, self.source)?;
        match (&self.endpoint, &self.path) {
            (None, None) => Ok(()),
            (endpoint, path) => {
                let endpoint = endpoint.as_ref().map(ToString::to_string).unwrap_or_default();
                write!(f, " ({endpoint}{})", path.as_deref().unwrap_or_default())
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => path.display().fmt(f),
            Self::Keyring(name) => write!(f, "{name} in the keyring"),
        }
    }
}

/// The keys of a `[[verify]]`, and where they stand.
type Keys = BTreeMap<toml::Spanned<String>, toml::Value>;

const KEYS: [&str; 14] = [
    "provider",
    "secret-env",
    "secret-file",
    "secret-keyring",
    "endpoint",
    "path",
    "header",
    "algorithm",
    "encoding",
    "prefix",
    "signed",
    "timestamp-header",
    "id-header",
    "tolerance",
];

/// A `[[verify]]` as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    provider: String,
    secret_env: Option<String>,
    secret_file: Option<PathBuf>,
    secret_keyring: Option<String>,
    endpoint: Option<String>,
    path: Option<String>,
    // How an HMAC is made that is no listed provider's.
    header: Option<String>,
    algorithm: Option<String>,
    encoding: Option<String>,
    prefix: Option<String>,
    signed: Option<String>,
    timestamp_header: Option<String>,
    id_header: Option<String>,
    tolerance: Option<String>,
}

impl FromStr for Verify {
    type Err = String;

    /// `PROVIDER` or `PROVIDER=VARIABLE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, named) = text.split_once('=').map_or((text, None), |(name, variable)| (name, Some(variable)));
        if name.len() > 20 || SECRETS.iter().any(|start| name.starts_with(start)) {
            return Err("it begins with no provider's name".into());
        }
        let provider = provider(name)?;
        let source = Source::Variable(variable(named.unwrap_or(provider.facts().secret_env))?);
        Ok(Self { provider, source, endpoint: None, path: None, of_file: false })
    }
}

/// How secrets begin.
const SECRETS: [&str; 9] = ["whsec_", "whpk_", "sk_", "rk_", "xox", "ghp_", "shpss_", "pdl_", "glpat"];

/// The name of a variable. A text that may be a secret itself is not repeated.
fn variable(name: &str) -> Result<String, String> {
    let characters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let by_chance = name.len() >= 20
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && name.bytes().any(|byte| byte.is_ascii_digit())
        && std::env::var_os(name).is_none();
    if name.is_empty() || !characters || by_chance || SECRETS.iter().any(|start| name.starts_with(start)) {
        return Err("the name of a variable that holds the secret is wanted, never the secret itself".into());
    }
    Ok(name.to_owned())
}

/// The provider of that name.
pub(crate) fn provider(name: &str) -> Result<Known, String> {
    Known::named(name).ok_or_else(|| match nearest(name, Known::names()) {
        Some(near) => format!("`{name}` is no provider that is known; did you mean `{near}`?"),
        None => format!("`{name}` is no provider; there are {}", Known::names().collect::<Vec<_>>().join(", ")),
    })
}

impl Verify {
    /// That provider's, with the secret in that variable.
    ///
    /// # Errors
    /// It is no variable's name.
    pub(crate) fn of(provider: &Known, variable: &str) -> Result<Self, String> {
        let own = format!("{}={variable}", provider.facts().name).parse::<Self>()?;
        Ok(Self { provider: provider.clone(), ..own })
    }

    /// What a file says: tables, or what the flag takes; of each one that is wrong what is, and where. `folder`: where the file
    /// is; `is_project`: whether it is shared.
    pub(super) fn read_all(
        text: &str,
        value: toml::Spanned<toml::Value>,
        folder: &Path,
        is_project: bool,
    ) -> Vec<Result<Self, (usize, String)>> {
        #[derive(Deserialize)]
        struct Tables {
            verify: Vec<toml::Spanned<Keys>>,
        }
        let at = value.span().start;
        if let Ok(texts) = value.into_inner().try_into::<Vec<String>>() {
            let read = |text: &String| text.parse::<Self>().map(|own| Self { of_file: true, ..own });
            return texts.iter().map(|text| read(text).map_err(|why| (at, why))).collect();
        }
        let tables = match toml::from_str::<Tables>(text) {
            Ok(tables) => tables,
            Err(error) => return vec![Err((at, error.message().to_owned()))],
        };
        let read = |table: toml::Spanned<Keys>| {
            let at = table.span().start;
            Self::read(table.into_inner(), folder, is_project).map_err(|(key, message)| (key.unwrap_or(at), message))
        };
        tables.verify.into_iter().map(read).collect()
    }

    /// A table of a file.
    fn read(table: Keys, folder: &Path, is_project: bool) -> Result<Self, (Option<usize>, String)> {
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.get_ref().as_str())) {
            let meant = nearest(key.get_ref(), KEYS);
            let meant = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            return Err((Some(key.span().start), format!("`{}` is no key of [[verify]]{meant}", key.get_ref())));
        }
        let plain: toml::Table = table.into_iter().map(|(key, value)| (key.into_inner(), value)).collect();
        let table = plain.try_into::<Table>().map_err(|error| (None, error.message().to_owned()))?;
        table.parse(folder, is_project).map_err(|why| (None, why))
    }

    /// Whether deliveries to that endpoint, if it is known, and path are checked with it.
    pub(crate) fn is_for(&self, endpoint: Option<&str>, path: &str) -> bool {
        let own = self.endpoint.as_ref().zip(endpoint);
        own.is_none_or(|(own, endpoint)| own.as_str() == endpoint)
            && self.path.as_deref().is_none_or(|own| takes_path(own, path))
    }

    /// The rule with the secret in it.
    pub(crate) fn rule(&self) -> Result<Rule, ConfigError> {
        let name = self.source.to_string();
        let secret = self.source.secret().map_err(|cause| ConfigError::NoSecret {
            name: name.clone(),
            provider: self.provider.facts().name,
            cause,
            next: match &self.source {
                Source::Variable(name) => format!("export {name}=…      (see {})", self.provider.facts().page),
                Source::File(path) => {
                    format!("put it into {}      (see {})", path.display(), self.provider.facts().page)
                }
                Source::Keyring(_) => {
                    "see what the keyring has, or take the secret from a variable:  secret-env".into()
                }
            },
        })?;
        let rule = Rule::new(self.provider.clone(), &secret, &name).map_err(|error| ConfigError::WrongSecret {
            name: name.clone(),
            title: self.provider.facts().title,
            cause: error.0,
            page: self.provider.facts().page,
        })?;
        let endpoint = self.endpoint.as_ref().map(ToString::to_string);
        Ok(rule.only_for(endpoint, self.path.clone()))
    }
}

impl Source {
    fn secret(&self) -> Result<String, String> {
        match self {
            Self::Variable(name) => match std::env::var(name) {
                Ok(secret) if secret.is_empty() => Err("the variable is empty".into()),
                Ok(secret) => Ok(secret),
                Err(std::env::VarError::NotPresent) => Err("the variable is not set".into()),
                Err(_) => Err("the variable holds what is no text".into()),
            },
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
                // Editors and `echo` end a file with a line end; no secret has one.
                Ok(text.strip_suffix('\n').map_or(text.as_str(), |text| text.trim_end_matches('\r')).to_owned())
            }
            Self::Keyring(name) => keyring(name),
        }
    }
}

#[cfg(feature = "os-keyring")]
fn keyring(name: &str) -> Result<String, String> {
    let entry = keyring::Entry::new("hookway secret", name);
    entry.and_then(|entry| entry.get_password()).map_err(|error| error.to_string())
}

#[cfg(not(feature = "os-keyring"))]
fn keyring(_: &str) -> Result<String, String> {
    Err("this build does not use the system's keyring (feature os-keyring)".into())
}

impl Table {
    fn parse(mut self, folder: &Path, is_project: bool) -> Result<Verify, String> {
        let known = provider(&self.provider)?;
        let provider = match &known {
            Known::Described(_) => Known::Described(Arc::new(self.hmac()?)),
            Known::Listed(_) if self.describes() => {
                return Err(format!(
                    "how {} signs is known; the keys for it are for `provider = \"hmac\"`",
                    self.provider
                ));
            }
            Known::Listed(_) => known,
        };
        let source = match (self.secret_env, self.secret_file, self.secret_keyring) {
            (None, None, None) => Source::Variable(provider.facts().secret_env.to_owned()),
            (Some(name), None, None) => Source::Variable(variable(&name)?),
            (None, Some(path), None) => {
                let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
                if is_project && !inside {
                    // Whoever wrote it must not choose which of the reader's files are read.
                    return Err("`secret-file` of a project is a file below the project's folder".into());
                }
                Source::File(folder.join(path))
            }
            (None, None, Some(name)) => Source::Keyring(name),
            _ => return Err("a secret is from one place: `secret-env`, `secret-file` or `secret-keyring`".into()),
        };
        let name = |name: String| name.parse::<EndpointName>().map_err(|error| format!("`{name}`: {error}"));
        let endpoint = self.endpoint.map(name).transpose()?;
        if self.path.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return Err("a `path` begins with /".into());
        }
        Ok(Verify { provider, source, endpoint, path: self.path, of_file: true })
    }
}

impl Table {
    const fn describes(&self) -> bool {
        let Self { header, algorithm, encoding, prefix, signed, timestamp_header, id_header, tolerance, .. } = self;
        header.is_some()
            || algorithm.is_some()
            || encoding.is_some()
            || prefix.is_some()
            || signed.is_some()
            || timestamp_header.is_some()
            || id_header.is_some()
            || tolerance.is_some()
    }

    fn hmac(&mut self) -> Result<Hmac, String> {
        let field = |name: Option<String>| {
            name.map(|name| HeaderName::try_from(&name).map_err(|_| format!("`{name}` is no header's name")))
                .transpose()
        };
        let algorithm = match self.algorithm.as_deref() {
            None | Some("sha256") => Mac::Sha256,
            Some("sha1") => Mac::Sha1,
            Some("sha512") => Mac::Sha512,
            Some(other) => return Err(format!("`{other}` is none of sha256, sha1, sha512")),
        };
        let encoding = match self.encoding.as_deref() {
            None | Some("hex") => Encoding::Hex,
            Some("base64") => Encoding::Base64,
            Some(other) => return Err(format!("`{other}` is none of hex, base64")),
        };
        let tolerance = |text: String| duration(&text).map_err(|_| format!("`{text}` is no duration, such as 5m"));
        let tolerance: Option<Duration> = self.tolerance.take().map(tolerance).transpose()?;
        let mut hmac = Hmac::default();
        if let Some(name) = field(self.header.take())? {
            hmac.header = name.to_string();
        }
        (hmac.algorithm, hmac.encoding, hmac.prefix) = (algorithm, encoding, self.prefix.take().unwrap_or_default());
        hmac.timestamp = field(self.timestamp_header.take())?.map(|name| name.to_string());
        hmac.id = field(self.id_header.take())?.map(|name| name.to_string());
        let hmac = match &self.signed {
            Some(signed) => hmac.over(signed)?,
            None => hmac,
        };
        hmac.tolerance(tolerance).complete()
    }
}
