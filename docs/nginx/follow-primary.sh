#!/usr/bin/env bash
# Follows a promotion: asks every node what it is, and tells NGINX when that has changed.
#
#     follow-primary.sh 10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080        the nodes, by their HTTP ports
#
#     UPSTREAMS=/etc/nginx/millrace-upstreams.conf    the file that is written
#     RELOAD='nginx -s reload'                        what is called then
#     CHECK='nginx -t -q'                             and what must succeed before
#     INTERVAL=0.5                                    seconds between two looks
#
# GET /role/primary answers 200 on a primary, /role/replica on a replica that may be read; anything else is neither.
# - One primary: writes go there. None: they stay where they went, for nobody is better, and fail until there is one.
# - Two: they stay where they went while that one still is one. To begin with two is refused, and an operator asked.
# - No replica: reads go to the primary.
#
# What NGINX does not accept is taken back, and a reload that failed is tried again at every look until it works: while one is
# owed there is a file UPSTREAMS.owed, also over a restart of this script. ONCE=1 looks once; it fails if that came to nothing.

set -euo pipefail
upstreams=${UPSTREAMS:-/etc/nginx/millrace-upstreams.conf}
reload=${RELOAD:-nginx -s reload}
check=${CHECK:-nginx -t -q}
interval=${INTERVAL:-0.5}
(($#)) || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
nodes=("$@")
owed=$upstreams.owed
said= failed=

# say TEXT: once, until there is something else to say.
say() {
    [[ $1 == "$said" ]] || printf 'follow-primary: %s\n' "$1" >&2
    said=$1
}

# ask ROLE: the nodes that say they have it, in the order of the arguments.
ask() {
    local urls=() answers node
    for node in "${nodes[@]}"; do urls+=(-o /dev/null "http://$node/role/$1"); done
    # What does not answer is not there: curl's own verdict is of no interest.
    answers=$(curl -s --parallel --max-time 1 -w '%{http_code} %{url}\n' "${urls[@]}" 2>/dev/null || true)
    for node in "${nodes[@]}"; do
        if grep -qxF "200 http://$node/role/$1" <<<"$answers"; then printf '%s\n' "$node"; fi
    done
}

# choose PRESENT PRIMARY...: who is written to.
choose() {
    local present=$1 primary
    shift
    if (($# == 1)); then
        printf '%s' "$1"
        return
    fi
    printf '%s' "$present"
}

# config PRIMARY REPLICA...: the file.
config() {
    local primary=$1 node
    shift
    (($#)) || set -- "$primary"
    printf '# primary %s\n' "$primary"
    printf 'upstream millrace_primary {\n    server %s max_fails=0;\n    keepalive 32;\n}\n' "$primary"
    printf 'upstream millrace_replicas {\n'
    for node in "$@"; do printf '    server %s max_fails=1 fail_timeout=1s;\n' "$node"; done
    printf '    keepalive 32;\n}\n'
}

# look: one look, and what follows from it.
look() {
    local primaries replicas present= wanted was_owed=
    failed=yes
    mapfile -t primaries < <(ask primary)
    mapfile -t replicas < <(ask replica)
    if [[ -e $upstreams ]]; then present=$(sed -n 's/^# primary //p;q' "$upstreams"); fi
    if ((${#primaries[@]} > 1)); then
        if [[ " ${primaries[*]} " != *" $present "* || -z $present ]]; then
            say "several nodes are primaries: ${primaries[*]}. Make all but one replicas (REPLICAOF HOST PORT)"
            return
        fi
        say "several nodes are primaries: ${primaries[*]}; writes stay with $present. Make the others its replicas"
    fi
    wanted=$(choose "$present" "${primaries[@]}")
    if [[ -z $wanted ]]; then
        say "no node is a primary: ${nodes[*]}"
        return
    fi
    ((${#primaries[@]})) || say "no node is a primary; writes stay with $present. Promote a replica (REPLICAOF NO ONE)"
    config "$wanted" "${replicas[@]}" >"$upstreams.new"
    if [[ -e $owed ]]; then was_owed=yes; fi
    if cmp -s "$upstreams.new" "$upstreams"; then
        rm "$upstreams.new"
        if [[ -z $was_owed ]]; then
            failed=
            ((${#primaries[@]} != 1)) || said=
            return
        fi
    else
        rm -f "$upstreams.old"
        if [[ -e $upstreams ]]; then cp "$upstreams" "$upstreams.old"; fi
        # First, so that who ends here begins with it.
        : >"$owed"
        mv "$upstreams.new" "$upstreams"
    fi
    if ! $check; then
        say "NGINX does not accept the new $upstreams: '$check' says why"
        if [[ -e $upstreams.old ]]; then cp "$upstreams.old" "$upstreams"; else rm "$upstreams"; fi
        [[ $was_owed ]] || rm "$owed"
        return
    fi
    if ! $reload; then
        say "'$reload' failed: NGINX goes on with what it had, and is told again"
        return
    fi
    rm "$owed"
    failed= said=
    printf 'follow-primary: primary %s, replicas %s\n' "$wanted" "${replicas[*]:-none}" >&2
}

if [[ ${ONCE:-} ]]; then
    look
    [[ -z $failed ]]
    exit
fi
while true; do
    look
    sleep "$interval"
done
