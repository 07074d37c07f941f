#!/bin/sh
# Installs hookway from a release; install.sh --help lists the words.
set -eu

project=https://github.com/hookway/hookway

usage() {
    cat <<'TEXT'
install.sh [--relay] [--version VERSION] [--prefix FOLDER]

Downloads hookway for this machine, compares it with the release's SHA256SUMS, and puts it below FOLDER: the program
into bin, its manual pages and completions into share. It needs no root, and asks no other host.

  --relay            hookway-relay, too
  --version VERSION  such as 0.1.0 (the latest)
  --prefix FOLDER    where to (~/.local)

HOOKWAY_INSTALL_URL  a folder with the archives and SHA256SUMS, such as a mirror of your own
TEXT
}

fail() { # fail WHAT CAUSE NEXT
    printf 'error: %s\n  cause: %s\n  next:  %s\n' "$1" "$2" "$3" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# The names that Rust has for systems, and the archives, too.
target() {
    case $(uname -m) in
        x86_64 | amd64) cpu=x86_64 ;;
        aarch64 | arm64) cpu=aarch64 ;;
        *) cpu='' ;;
    esac
    case $(uname -s) in
        Linux) system=unknown-linux-musl ;; # needs nothing of the system, so it runs on every one
        Darwin) system=apple-darwin ;;
        *) system='' ;;
    esac
    if [ -z "$cpu" ] || [ -z "$system" ]; then
        fail "there is no archive for this machine" "it is $(uname -s) on $(uname -m)" \
            "cargo install --locked --git $project hookway"
    fi
    echo "$cpu-$system"
}

download() { # download NAME: into $work
    if has curl; then
        curl --fail --silent --show-error --location --retry 2 --output "$work/$1" "$base/$1"
    elif has wget; then
        wget -q -O "$work/$1" "$base/$1"
    else
        fail "nothing here can download" "neither curl nor wget is installed" "install one of them"
    fi || fail "cannot download $1" "$base/$1 did not give it" "is there such a release?  $project/releases"
}

checksum() {
    if has sha256sum; then
        sha256sum "$1"
    elif has shasum; then
        shasum -a 256 "$1"
    else
        fail "the download cannot be checked" "neither sha256sum nor shasum is installed" "install one of them"
    fi | cut -d ' ' -f 1
}

verify() { # verify NAME: against SHA256SUMS, which lists "sum  name"
    wanted=$(awk -v name="$1" '$2 == name { print $1; exit }' "$work/SHA256SUMS")
    [ -n "$wanted" ] || fail "$1 cannot be checked" "SHA256SUMS does not have it" "nothing was installed; try again later"
    found=$(checksum "$work/$1")
    [ "$found" = "$wanted" ] || fail "$1 is not what was released" \
        "its SHA-256 is $found, and SHA256SUMS has $wanted" "nothing was installed; try again, and tell the project if it stays so"
}

put() { # put FILE FOLDER MODE: whole or not at all, also over a program that runs
    mkdir -p "$2"
    cp "$1" "$2/.${1##*/}.new"
    chmod "$3" "$2/.${1##*/}.new"
    mv -f "$2/.${1##*/}.new" "$2/${1##*/}"
}

install_program() { # install_program NAME
    put "$unpacked/$1" "$prefix/bin" 755
    for page in "$unpacked/man/$1.1" "$unpacked/man/$1"-*.1; do
        # hookway-*.1 are also the relay's.
        case $1:${page##*/} in hookway:hookway-relay*) continue ;; esac
        put "$page" "$prefix/share/man/man1" 644
    done
    put "$unpacked/completions/bash/$1" "$prefix/share/bash-completion/completions" 644
    put "$unpacked/completions/zsh/_$1" "$prefix/share/zsh/site-functions" 644
    put "$unpacked/completions/fish/$1.fish" "$prefix/share/fish/vendor_completions.d" 644
    echo "installed $prefix/bin/$1"
}

main() {
    prefix='' relay='' version=''
    while [ $# -gt 0 ]; do
        case $1 in
            --relay) relay=yes ;;
            --version | --prefix)
                [ $# -gt 1 ] || { usage >&2; exit 2; }
                case $1 in --version) version=${2#v} ;; --prefix) prefix=$2 ;; esac
                shift
                ;;
            -h | --help) usage; exit 0 ;;
            *) usage >&2; exit 2 ;;
        esac
        shift
    done
    prefix=${prefix:-$HOME/.local}
    release=latest/download
    [ -z "$version" ] || release=download/v$version
    base=${HOOKWAY_INSTALL_URL:-$project/releases/$release}

    target=$(target)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    download SHA256SUMS
    download "hookway-$target.tar.gz"
    verify "hookway-$target.tar.gz"
    tar -xzf "$work/hookway-$target.tar.gz" -C "$work"
    unpacked=$work/hookway-$target

    install_program hookway
    [ -z "$relay" ] || install_program hookway-relay
    case :$PATH: in
        *":$prefix/bin:"*) echo "next:  hookway dev --demo" ;;
        *) echo "next:  put $prefix/bin into PATH, then:  hookway dev --demo" ;;
    esac
}

# At the end, so that half a script does nothing.
main "$@"
