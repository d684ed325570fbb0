#!/usr/bin/env bash
# Installs the system packages that are missing, and nothing when none is. Debian and its relatives.
#
#   dev/setup.sh        what tests and load runs need
#   dev/setup.sh demo   what `make demo` needs
set -euo pipefail

missing=()

# need PACKAGE CHECK...: the package, unless the check succeeds.
need() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}

has() { command -v "$1"; }

# The programs of a PostgreSQL server; Debian keeps them out of PATH.
has_postgres() {
  has initdb || compgen -G "${KONTORION_PG_BIN:-/usr/lib/postgresql/*/bin}/initdb" ||
    compgen -G "/usr/pgsql-*/bin/initdb"
}

# Of several packages the first that this release of the distribution has.
first_available() {
  local package
  for package in "$@"; do
    if apt-cache show "$package" >/dev/null 2>&1; then
      echo "$package"
      return
    fi
  done
  echo "${!#}"
}

need postgresql has_postgres
need build-essential has cc
need build-essential has c++
need build-essential has make
need cmake has cmake
need pkg-config has pkg-config
need zlib1g-dev test -e /usr/include/zlib.h
if [ "${1:-}" != demo ]; then
  need java has java
  need maven has mvn
  need npm has npm
  need kcat has kcat
  need golang-go has go
fi

install() {
  local run=()
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "missing: $*" >&2
      echo "install them as root: apt-get install $*" >&2
      exit 1
    fi
    run=(sudo)
  fi
  if ! command -v apt-get >/dev/null; then
    echo "missing, under the names that Debian gives them: $*" >&2
    exit 1
  fi
  echo "installing $* …" >&2
  "${run[@]}" apt-get -qq update >/dev/null
  # Only after the update does apt know what this release has.
  local package packages=()
  for package in "$@"; do
    [ "$package" != java ] || package=$(first_available openjdk-17-jdk-headless default-jdk-headless)
    packages+=("$package")
  done
  local log
  log=$(mktemp)
  if ! "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    "${packages[@]}" >"$log" 2>&1 </dev/null; then
    tail -n 30 "$log" >&2
    echo "installing ${packages[*]} failed" >&2
    exit 1
  fi
  rm -f "$log"
}

if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  install "${missing[@]}"
fi

# The toolchain is not the system's business: rustup keeps it, and rust-toolchain.toml names the version.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
if ! command -v cargo >/dev/null; then
  echo "Rust is not installed. Install rustup (https://rustup.rs); it fetches Rust $wanted by itself." >&2
  exit 1
fi
if ! found=$(cargo --version 2>&1); then
  printf '%s\n' "$found" >&2
  echo "Rust $wanted is needed; rustup installs it with: rustup toolchain install $wanted" >&2
  exit 1
fi
found=$(awk '{ print $2 }' <<<"$found")
if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
  echo "Rust $found is too old, $wanted is needed: rustup toolchain install $wanted" >&2
  exit 1
fi
