//! Settings files: TOML whose keys are the long flags of a program. What a key means is the program's; this module
//! finds keys nobody knows, says where they stand and what was probably meant, and makes what a file says the
//! defaults of the program's flags.

use std::fmt;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One setting of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key: a flag's long name.
    pub key: String,
    /// Its values as a flag would be given them; one, unless the file has a list.
    pub values: Vec<String>,
    /// The line it stands on, from 1.
    pub line: usize,
}

/// Something wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Reads the settings of a file and everything that is wrong with it. Keys in `tables` are left to the caller.
#[must_use]
pub fn read(text: &str, known: &[&str], tables: &[&str]) -> (Vec<Setting>, Vec<Problem>) {
    let (mut settings, mut problems) = (Vec::new(), Vec::new());
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            return (settings, vec![Problem { line, message: error.message().to_owned() }]);
        }
    };
    for (key, value) in &table {
        let line = line_of(text, key.span().start);
        let key = key.get_ref().as_ref();
        if tables.contains(&key) {
            continue;
        }
        let problem = if known.contains(&key) {
            match values(value) {
                Some(values) => {
                    settings.push(Setting { key: key.to_owned(), values, line });
                    continue;
                }
                None => format!("`{key}` takes a text, a number, true or false, or a list of those"),
            }
        } else {
            match nearest(key, known.iter().chain(tables).copied()) {
                Some(meant) => format!("unknown key `{key}`; did you mean `{meant}`?"),
                None => format!("unknown key `{key}`"),
            }
        };
        problems.push(Problem { line, message: problem });
    }
    settings.sort_by_key(|setting| setting.line);
    problems.sort_by_key(|problem| problem.line);
    (settings, problems)
}

/// Whether a flag, or an argument of that name, of a command or one of its subcommands takes these values.
///
/// # Errors
/// What is wrong, in a line.
pub fn check(command: &Command, setting: &Setting) -> Result<(), String> {
    let arg = find(command, &setting.key).ok_or_else(|| format!("unknown key `{}`", setting.key))?;
    if !arg.get_action().takes_values() {
        let fits = matches!(setting.values.as_slice(), [value] if value == "true" || value == "false");
        return fits.then_some(()).ok_or_else(|| format!("`{}` is true or false", setting.key));
    }
    if setting.values.len() != 1 && !matches!(arg.get_action(), ArgAction::Append) {
        return Err(format!("`{}` takes one value", setting.key));
    }
    let given: Vec<String> = match arg.get_long() {
        Some(flag) => setting.values.iter().map(|value| format!("--{flag}={value}")).collect(),
        None => std::iter::once("--".to_owned()).chain(setting.values.iter().cloned()).collect(),
    };
    let alone = Command::new(command.get_name().to_owned()).no_binary_name(true).arg(arg.clone().required(false));
    alone.try_get_matches_from(given).map(drop).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// The same command line, with what a file says as the defaults of its flags, those of its subcommands too. An
/// argument that takes one value gets the first.
#[must_use]
pub fn defaults(mut command: Command, settings: &[Setting]) -> Command {
    command = command.mut_args(|arg| {
        let Some(setting) = settings.iter().find(|setting| is_named(&arg, &setting.key)) else { return arg };
        let one = !matches!(arg.get_action(), ArgAction::Append);
        let values = setting.values.iter().take(if one { 1 } else { usize::MAX });
        arg.default_values(values.cloned().map(clap::builder::OsStr::from))
    });
    command.mut_subcommands(|sub| defaults(sub, settings))
}

/// The same command line, to which a variable that is set to nothing is not set.
#[must_use]
pub fn without_empty_variables(command: Command) -> Command {
    let empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command =
        command.mut_args(|arg| if arg.get_env().is_some_and(empty) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

/// The command's own before those of its subcommands.
fn find<'a>(command: &'a Command, key: &str) -> Option<&'a clap::Arg> {
    let own = command.get_arguments().find(|arg| is_named(arg, key));
    own.or_else(|| command.get_subcommands().find_map(|sub| find(sub, key)))
}

/// By its long flag; by its place, if it has none.
fn is_named(arg: &clap::Arg, key: &str) -> bool {
    arg.get_long().unwrap_or(arg.get_id().as_str()) == key
}

/// The known word that is closest to `word`, if one is close.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.replace('_', "-");
    known
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()) / 3)
        .map(|(_, candidate)| candidate)
}

/// Reads a duration such as `500ms`, `30s`, `5m`, `24h` or `7d`.
///
/// # Errors
/// Says what a duration looks like.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 6] =
        [("ms", 1), ("s", 1000), ("min", 60_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    quantity(text, &UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| "a duration is a number and ms, s, m, h or d".into())
}

/// Reads a size in bytes such as `64KiB`, `1MiB`, `1GiB`, `500kB` or `4096`.
///
/// # Errors
/// Says what a size looks like.
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 11] = [
        ("", 1),
        ("B", 1),
        ("kB", 1000),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("TB", 1_000_000_000_000),
    ];
    quantity(text, &UNITS).ok_or_else(|| "a size is a number and KiB, MiB, GiB, kB, MB or GB".into())
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn values(value: &Spanned<DeValue<'_>>) -> Option<Vec<String>> {
    match value.get_ref() {
        DeValue::Array(list) => list.iter().map(|value| scalar(value.get_ref())).collect(),
        value => Some(vec![scalar(value)?]),
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// The line of a byte of the text, from 1.
#[must_use]
pub fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_problems() {
        let text = "# relay\ndomain = \"a.test\"\nrate = 5\ntrusted-proxy = [\"10.0.0.0/8\", \"::1\"]\n\ndomian = 1\nx = 2\nrate2 = {a = 1}\n[[endpoint]]\nname = 1\n";
        let (settings, problems) = read(text, &["domain", "rate", "trusted-proxy", "rate2"], &["endpoint"]);
        let flat: Vec<_> = settings.iter().map(|s| (s.key.as_str(), s.values.join(" "), s.line)).collect();
        let list = "10.0.0.0/8 ::1".to_owned();
        assert_eq!(flat, [("domain", "a.test".into(), 2), ("rate", "5".into(), 3), ("trusted-proxy", list, 4)]);
        let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "line 6: unknown key `domian`; did you mean `domain`?",
                "line 7: unknown key `x`",
                "line 8: `rate2` takes a text, a number, true or false, or a list of those",
            ]
        );
    }

    fn command() -> Command {
        let port = clap::Arg::new("port").long("port").value_parser(clap::value_parser!(u16)).default_value("1");
        let list = clap::Arg::new("list").long("list").action(ArgAction::Append);
        let switch = clap::Arg::new("switch").long("switch").action(ArgAction::SetTrue);
        let target = clap::Arg::new("target");
        let sub = Command::new("sub").arg(port.clone());
        Command::new("test").args([port, list, switch, target]).subcommand(sub)
    }

    fn setting(key: &str, values: &[&str]) -> Setting {
        Setting { key: key.into(), values: values.iter().map(ToString::to_string).collect(), line: 1 }
    }

    #[test]
    fn what_a_file_says_is_less_than_what_a_flag_says() {
        let settings = [
            setting("port", &["2"]),
            setting("list", &["a", "b"]),
            setting("switch", &["true"]),
            setting("target", &["sub"]),
        ];
        let parse = |args: &[&str]| {
            let given = ["test"].iter().chain(args);
            defaults(command(), &settings).try_get_matches_from(given).expect("a command line")
        };
        let matches = parse(&[]);
        assert_eq!(matches.get_one::<u16>("port"), Some(&2));
        assert_eq!(matches.get_many::<String>("list").expect("a list").collect::<Vec<_>>(), ["a", "b"]);
        assert!(matches.get_flag("switch"));
        assert_eq!(matches.get_one::<String>("target").expect("a target"), "sub", "and not the command of that name");
        assert!(matches.subcommand().is_none());
        let matches = parse(&["--port", "3", "--list", "c"]);
        assert_eq!(matches.get_one::<u16>("port"), Some(&3));
        assert_eq!(matches.get_many::<String>("list").expect("a list").collect::<Vec<_>>(), ["c"]);
        let matches = parse(&["sub"]);
        assert_eq!(matches.subcommand_matches("sub").expect("the command").get_one::<u16>("port"), Some(&2));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        assert_eq!(check(&command(), &setting("port", &["80"])), Ok(()));
        assert_eq!(check(&command(), &setting("list", &["a", "b"])), Ok(()));
        assert_eq!(check(&command(), &setting("target", &["--port"])), Ok(()), "a word like any other");
        for (wrong, said) in [
            (setting("port", &["http"]), "invalid value 'http' for '--port"),
            (setting("port", &["1", "2"]), "`port` takes one value"),
            (setting("switch", &["3"]), "`switch` is true or false"),
            (setting("prot", &["1"]), "unknown key `prot`"),
        ] {
            let error = check(&command(), &wrong).expect_err("wrong");
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn quantities() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(size("64KiB"), Ok(64 << 10));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "s", "-1s", "1.5s", "5 parsecs", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn broken_toml_names_its_line() {
        let (settings, problems) = read("a = 1\nb = = 2\n", &["a", "b"], &[]);
        assert!(settings.is_empty());
        assert_eq!(problems[0].line, 2);
    }
}
