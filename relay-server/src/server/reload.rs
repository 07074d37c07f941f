//! What a running relay takes over of a changed configuration, and what waits for a restart.

use crate::config::Config;

/// The new configuration with the old one's settings where those cannot change while the relay runs, and the names of
/// these that differ.
pub(super) fn merged(old: &Config, mut new: Config) -> (Config, Vec<&'static str>) {
    let mut later = Vec::new();
    macro_rules! keep {
        ($($name:literal => $($field:ident).+),+ $(,)?) => {
            $(if new.$($field).+ != old.$($field).+ {
                new.$($field).+ = old.$($field).+.clone();
                later.push($name);
            })+
        };
    }
    keep! {
        "domain" => domain,
        "data-dir" => data_dir,
        "https" => public.https,
        "http" => public.http,
        "http-serve" => public.http_serve,
        "admin" => admin.admin,
        "public-port" => public.public_port,
        "access-log" => public.access_log,
        "max-handshakes" => tunnel.max_handshakes,
        "resolver" => tunnel.resolver,
    }
    // Files are read from wherever they are said to be.
    let are_files = |config: &Config| matches!(config.certs, crate::CertsConfig::Files { .. });
    if !(are_files(old) && are_files(&new)) {
        keep! { "tls" => certs }
    }
    (new, later)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use hookway_protocol::host::Host;

    use super::*;
    use crate::CertsConfig;

    fn domain(text: &str) -> Host<'static> {
        Host::parse(text).expect("a domain").into_owned()
    }

    #[test]
    fn what_cannot_change_is_named_and_stays() {
        let old = Config::new(domain("old.test"), "/data".into());
        let mut new = Config::new(domain("new.test"), "/data".into());
        new.public.max_body = 7;
        new.public.http = None;
        new.certs = CertsConfig::Files { cert: "c".into(), key: "k".into() };
        let (merged, later) = merged(&old, new);
        assert_eq!(later, ["domain", "http", "tls"]);
        assert_eq!((merged.domain.as_str(), merged.public.max_body), ("old.test", 7));
        assert_eq!(merged.public.http, old.public.http);
        assert!(matches!(merged.certs, CertsConfig::SelfSigned));
    }

    #[test]
    fn other_files_are_taken() {
        let with = |cert: &str| {
            let mut config = Config::new(domain("a.test"), "/data".into());
            config.certs = CertsConfig::Files { cert: cert.into(), key: "k".into() };
            config
        };
        let (merged, later) = merged(&with("one"), with("two"));
        assert!(later.is_empty(), "{later:?}");
        assert!(matches!(merged.certs, CertsConfig::Files { cert, .. } if cert == Path::new("two")));
    }
}
