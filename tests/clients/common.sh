# Sourced by the client programs that are command line tools: the same `check` as the libraries' programs have.

checks=0

# check NAME CONDITION...: runs the condition as a command; the first failure ends the program.
check() {
    local name=$1
    shift
    if ! "$@"; then
        printf '  FAILED %s: %s\n' "$name" "$(printf '%q ' "$@" | cut -c1-1500)"
        exit 1
    fi
    checks=$((checks + 1))
    echo "  ok $name"
}

equal() { [[ $1 == "$2" ]]; }
contains() { [[ $1 == *"$2"* ]]; }
matches() { [[ $1 =~ $2 ]]; }
finish() { echo "$checks checks passed"; }
