#!/usr/bin/env bash
# Fails when a document links to a file of this repository that is not there.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
broken=0
while IFS= read -r -d '' document; do
  # Targets of [text](target), without addresses, anchors and what stands in code blocks.
  targets=$(awk '/^ *```/ { code = !code } !code' "$document" |
    grep -oE '\]\([^) ]+' | sed 's/^](//; s/#.*//' | grep -vE '^([a-z]+:|$)' || true)
  while IFS= read -r target; do
    [ -n "$target" ] || continue
    if [ ! -e "$(dirname "$document")/$target" ]; then
      echo "$document: no such file: $target" >&2
      broken=1
    fi
  done <<<"$targets"
done < <(git ls-files -z --cached --others --exclude-standard '*.md')
exit $broken
