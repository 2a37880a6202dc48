# shellcheck shell=bash
# Functions that the set-up scripts share: messages and root access.

say() {
    printf 'set-up: %s\n' "$*"
}

fail() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need_root WHAT: fail with one line if this user cannot become root, which WHAT needs.
need_root() {
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        fail "needs root to $1; run make as root, or install sudo"
}

# passing_on COMMAND...: run a command, and return its code; a signal that reaches us alone ends it too.
passing_on() {
    local work code
    # What is in the background would ignore Ctrl-C, which reaches it by itself.
    env --default-signal=INT,QUIT "$@" </dev/null &
    work=$!
    trap : INT
    # shellcheck disable=SC2064 # this process, whatever runs later
    trap "kill $work 2>/dev/null" TERM HUP
    wait "$work"
    code=$?
    while kill -0 "$work" 2>/dev/null; do # a signal ended the wait
        wait "$work"
        code=$?
    done
    return "$code"
}
