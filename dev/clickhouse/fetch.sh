#!/usr/bin/env bash
# Fetches libchdb, the ClickHouse engine as a library, from its npm package into the cache, once per version.
# Prints the path of the library.
set -euo pipefail

package=@chdb/lib-linux-x64-gnu
version=26.5.3
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kontorion
dir=$cache/chdb/$version

if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "$package is for Linux on x86-64, this is $(uname -sm)" >&2
  exit 1
fi

# The directory gets its name only when it is complete.
if [ ! -f "$dir/libchdb.so" ]; then
  command -v npm >/dev/null || { echo "npm is not installed; dev/setup.sh installs it" >&2; exit 1; }
  mkdir -p "$cache/chdb"
  part=$(mktemp -d "$cache/chdb/part.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  (cd "$part" && npm pack --silent "$package@$version" >&2 </dev/null)
  tar -xzf "$part"/*.tgz -C "$part" --strip-components=1 package/libchdb.so
  rm "$part"/*.tgz
  chmod 755 "$part"
  mv -T "$part" "$dir" 2>/dev/null || [ -f "$dir/libchdb.so" ]
fi
echo "$dir/libchdb.so"
