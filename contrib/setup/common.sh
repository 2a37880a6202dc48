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
