#!/usr/bin/env bash
# Fetches the jars of Apache Kafka from Maven Central into the cache, once per version of pom.xml.
# Prints the directory they are in.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kontorion
stamp=$(sha256sum "$here/pom.xml" | cut -c1-16)
libs=$cache/kafka/$stamp

# The directory gets its name only when it is complete.
if [ ! -d "$libs" ]; then
  command -v mvn >/dev/null || { echo "maven is not installed; dev/setup.sh installs it" >&2; exit 1; }
  mkdir -p "$cache/kafka"
  part=$(mktemp -d "$cache/kafka/part.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  # Maven writes its messages to standard output, which here belongs to the answer.
  mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$part" >&2 </dev/null
  chmod 755 "$part"
  mv -T "$part" "$libs" 2>/dev/null || [ -d "$libs" ]
fi
echo "$libs"
