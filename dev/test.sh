#!/usr/bin/env bash
# Runs the tests with a PostgreSQL, a Kafka and a ClickHouse of their own, which stop at the end.
# Arguments go to `cargo test`; without any, it tests the whole workspace.
#
# With CI=true every engine and stripe-mock must be there. Without it, tests that miss theirs say `did not run: …`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/kontorion/target}
selection=("$@")
[ ${#selection[@]} -gt 0 ] || selection=(--workspace)

if [ "${CI:-}" = true ]; then
  dev/setup.sh
else
  # Whoever cannot install everything still runs what can be run.
  dev/setup.sh || dev/setup.sh demo
fi

# Downloads run beside the build. What fails here is reported by the start of its engine.
dev/kafka/fetch.sh >/dev/null &
dev/clickhouse/fetch.sh >/dev/null &
dev/stripe-mock/fetch.sh >/dev/null &

# One selection for everything, so that nothing is built twice: tests, the engines' starter, ClickHouse's server.
cargo test "${selection[@]}" --no-run
[ "${selection[0]}" = --workspace ] || cargo build --quiet --package engines --package dev-clickhouse --bins
wait
# Empty where it cannot be had, which its test reports.
export KONTORION_TEST_STRIPE_MOCK=${KONTORION_TEST_STRIPE_MOCK-$(dev/stripe-mock/fetch.sh)}

# Two tests of a program at a time: with more, engines on two cores wait for each other.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
"$CARGO_TARGET_DIR/debug/dev-engines" run -- \
  cargo test "${selection[@]}" --no-fail-fast -- --test-threads=2 2>&1 | tee "$log" || status=$?

# What cargo says per program, once for the whole run.
{ grep -aE '^(did not run: |test .* \.\.\. FAILED$)' "$log" || true; } | sort -u
awk '/^test result: / { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i - 1)
  if ($i ~ /^failed/) f += $(i - 1); if ($i ~ /^ignored/) s += $(i - 1) } }
  END { printf "%d passed, %d failed, %d skipped\n", p, f, s }' "$log"
exit "$status"
