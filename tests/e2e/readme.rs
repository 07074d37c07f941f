//! The README's console examples do what they show.

use std::path::{Path, PathBuf};

#[test]
fn the_examples_of_the_readme_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let binaries = [("hookway", built("hookway")), ("hookway-relay", built("hookway-relay"))];
    let home = tempfile::tempdir().expect("a home");
    let cases = trycmd::TestCases::new();
    for (name, path) in &binaries {
        assert!(path.exists(), "{name} is not built: cargo build --workspace");
        cases.register_bin(*name, path.as_path());
    }
    for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        cases.env(variable, home.path().display().to_string());
    }
    cases.case(root.join("README.md"));
    cases.run();
}

/// A program beside this test's own.
fn built(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("this program has a path");
    here.parent().and_then(Path::parent).expect("the profile's folder").join(name)
}
