#!/usr/bin/env bash
# Builds stripe-mock, Stripe's own server for tests, into the cache, once per version. Prints the path of the program.
set -euo pipefail

# A version that the Go of Debian 12 can build.
version=v0.162.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kontorion
dir=$cache/stripe-mock/$version

# The directory gets its name only when it is complete.
if [ ! -x "$dir/stripe-mock" ]; then
  command -v go >/dev/null || { echo "Go is not installed; dev/setup.sh installs it" >&2; exit 1; }
  mkdir -p "$cache/stripe-mock"
  part=$(mktemp -d "$cache/stripe-mock/part.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  GOBIN=$part go install "github.com/stripe/stripe-mock@$version" >&2 </dev/null
  chmod 755 "$part"
  mv -T "$part" "$dir" 2>/dev/null || [ -x "$dir/stripe-mock" ]
fi
echo "$dir/stripe-mock"
