#!/usr/bin/env bash
# Installs what the tests need and is not there yet: Debian packages, and the client libraries from their registries,
# the latter below target/ only. Running it again costs a second.
#
# Expected to be there already: Rust (rustup), gcc, git, python3, node.

set -euo pipefail
cd "$(dirname "$0")/.."
work=${CARGO_TARGET_DIR:-$PWD/target}/clients
mkdir -p "$work"

packages=()
has() { command -v "$1" >/dev/null; }
has redis-server || packages+=(redis-server)                            # the oracle
has redis-cli && has redis-benchmark || packages+=(redis-tools)         # two of the client programs
has php || packages+=(php-cli)
php -r 'exit(extension_loaded("redis") ? 0 : 1);' 2>/dev/null || packages+=(php-redis) # another
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
has node && has npm || packages+=(npm)
has curl || packages+=(curl)
has nginx || [[ -x /usr/sbin/nginx ]] || packages+=(nginx-light) # the examples in docs/caching and docs/nginx
# Hosts of the tests' own: network namespaces, and lost packets.
has ip || [[ -x /sbin/ip ]] || packages+=(iproute2)
has nft || [[ -x /usr/sbin/nft ]] || packages+=(nftables)
# OpenSSL, for the encrypted journal, is built from source.
has perl && perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null || packages+=(perl)
has make || packages+=(make)
has cc || packages+=(gcc libc6-dev)
# The power-cut disk; root only, whose programs may not be on the PATH.
has mkfs.ext4 || [[ -x /sbin/mkfs.ext4 ]] || packages+=(e2fsprogs)
has losetup || [[ -x /sbin/losetup ]] || packages+=(mount)
if ((${#packages[@]})); then
    as_root=()
    if ((EUID != 0)); then
        has sudo || { echo "setup: run me as root once, or install: ${packages[*]}" >&2; exit 1; }
        as_root=(sudo)
    fi
    echo "setup: installing ${packages[*]}"
    "${as_root[@]}" apt-get update -qq
    # RUNLEVEL=1: the redis-server that comes with the package is not started as a service.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$work/apt.log" 2>&1 \
        || { tail -20 "$work/apt.log" >&2; exit 1; }
fi

# The reports in a browser: without one that test says that it was skipped.
if ! has chromium && ! has chromium-browser && ! has google-chrome; then
    echo "setup: installing chromium"
    as_root=()
    ((EUID == 0)) || as_root=(sudo -n)
    { "${as_root[@]}" apt-get update -qq \
        && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
        >"$work/chromium.log" 2>&1 || echo "setup: no chromium can be had: $(tail -1 "$work/chromium.log")" >&2
fi

# installed FILE STAMP: the list of packages is the one that was installed last.
installed() { cmp -s "$1" "$2"; }

if ! installed tests/clients/requirements.txt "$work/python/installed"; then
    echo "setup: redis-py, valkey-glide, coredis"
    rm -rf "$work/python"
    python3 -m venv "$work/python"
    "$work/python/bin/pip" install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
    cp tests/clients/requirements.txt "$work/python/installed"
fi
if ! installed tests/clients/package.json "$work/node/installed"; then
    echo "setup: node-redis, ioredis"
    rm -rf "$work/node"
    mkdir -p "$work/node"
    cp tests/clients/package.json "$work/node/"
    more=()
    # Both libraries demand Node.js 20; Debian 12's own is 18. npm has Node.js as a package, too.
    (($(node -p 'process.versions.node.split(".")[0]') >= 20)) || more=(node@22)
    npm install --prefix "$work/node" --no-save --no-audit --no-fund --no-package-lock --loglevel=error "${more[@]}"
    cp tests/clients/package.json "$work/node/installed"
fi
cargo build --quiet --locked --manifest-path tests/clients/redis-rs/Cargo.toml --target-dir "$work/redis-rs"
