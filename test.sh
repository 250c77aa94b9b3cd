#!/usr/bin/env bash
# Sets up what the tests need and passes every one of them. `./test.sh fast` leaves out the setup, the documentation
# and the client programs: what you run while you work.

set -euo pipefail
cd "$(dirname "$0")"
target=${CARGO_TARGET_DIR:-$PWD/target}
fast=${1:-}

# step NAME COMMAND...: runs it and says how long it took; the first that fails ends everything.
step() {
    local name=$1 begun=$SECONDS
    shift
    printf '\n=== %s\n' "$name"
    "$@" || { printf '\n=== FAILED: %s\n' "$name"; exit 1; }
    printf '=== %s: passed in %d s\n' "$name" $((SECONDS - begun))
}

# Ten thousand connections need ten thousand descriptors in the test's process, and as many in the server's.
raise_descriptor_limit() {
    ulimit -n "$(ulimit -Hn)" || true
    local limit
    limit=$(ulimit -n)
    [[ $limit == unlimited ]] || ((limit >= 16384)) || ulimit -n 16384 || {
        echo "the tests open 10,000 connections: the limit of $limit open files must be at least 16384 (ulimit -Hn)"
        return 1
    }
}

# The package and its counter-proof: tests/no_std/Cargo.toml says how it works. Same versions as the product's.
crates_without_std() {
    local manifest=tests/no_std/Cargo.toml output
    cp Cargo.lock tests/no_std/Cargo.lock
    cargo check --quiet --manifest-path "$manifest" --target-dir "$target/no_std" || return 1
    if output=$(cargo check --manifest-path "$manifest" --target-dir "$target/no_std" --features with-std 2>&1); then
        echo "the counter-proof compiled: this check could not notice std"
        return 1
    fi
    grep -q E0152 <<<"$output" || { echo "the counter-proof failed for another reason: $output"; return 1; }
}

documentation() {
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
        cargo doc --quiet --profile ci --workspace --features sqlcipher --no-deps --document-private-items
}

raise_descriptor_limit
[[ $fast ]] || step "setup" scripts/setup.sh
step "rustfmt" cargo fmt --all --check
step "rustfmt, redis-rs program" cargo fmt --check --manifest-path tests/clients/redis-rs/Cargo.toml
step "rustfmt, no_std proof" cargo fmt --check --manifest-path tests/no_std/Cargo.toml
step "rustfmt, model" cargo fmt --check --manifest-path tests/model/Cargo.toml
# Everything below is built in one profile and with one set of features, so that OpenSSL and SQLCipher are built once.
step "clippy" cargo clippy --quiet --profile ci --workspace --all-targets --features sqlcipher -- -D warnings
step "clippy without the encrypted journal" cargo clippy --quiet --profile ci -p wal -p reactor --all-targets -- -D warnings
[[ $fast ]] || step "documentation builds" documentation
step "store, wal, snapshot and repl build without std" crates_without_std
# Queues between shards and how shards sleep: every order of events, by loom.
step "model check" cargo test --quiet --manifest-path tests/model/Cargo.toml --target-dir "$target/model"
# Profile `ci`: fast enough for the random suites, with assertions and overflow checks. The server first: the oracle
# and the client programs start it.
step "the server builds" cargo build --quiet --profile ci -p reactor --bin millrace --features sqlcipher
step "cargo test" cargo test --quiet --profile ci --workspace --features sqlcipher --no-fail-fast
[[ $fast ]] || step "client programs" tests/clients/run.sh
printf '\n=== all tests passed in %d s\n' "$SECONDS"
