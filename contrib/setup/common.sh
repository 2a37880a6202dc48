# shellcheck shell=bash
# What the set-up's scripts share: how they speak, and how they become root.

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

# need_root WHAT: stop with one line if WHAT needs a root that this user can't be.
need_root() {
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        fail "needs root to $1; run make as root, or install sudo"
}
