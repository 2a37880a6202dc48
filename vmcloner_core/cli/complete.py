"""``vmcloner complete``: scripts for shells, which ask the program for words at each TAB."""

from __future__ import annotations

import argparse

from vmcloner_core.cli.base import Base
from vmcloner_core.cli.completing import candidates
from vmcloner_core.errors import UsageError

FILES = 1
"""The exit code that tells a script to complete the names of files."""

BASH = r"""# bash completion for vmcloner
_vmcloner() {
    local cur=${COMP_WORDS[COMP_CWORD]} program=${COMP_WORDS[0]/#\~/$HOME} word
    local -a words
    COMPREPLY=()
    words=("${COMP_WORDS[@]:1:COMP_CWORD-1}" "$cur")
    words=$("$program" complete --words -- "${words[@]}" 2>/dev/null) || {
        compopt -o default 2>/dev/null
        return 0
    }
    while IFS= read -r word; do
        [ -n "$word" ] || continue
        case $cur in
            [\'\"]*) ;;
            *) printf -v word %q "$word" ;;
        esac
        [ "${word: -1}" != : ] || compopt -o nospace 2>/dev/null
        COMPREPLY+=("$word")
    done <<<"$words"
}
complete -F _vmcloner vmcloner
"""

ZSH = r"""#compdef vmcloner
_vmcloner() {
    local out
    local -a found
    found=("${(@)words[2,CURRENT-1]}" "${words[CURRENT]}")
    out=$("${(Q)words[1]/#\~/$HOME}" complete --words -- "${(@)found}" 2>/dev/null) || {
        _files
        return
    }
    found=("${(@f)out}")
    found=(${found:#})
    local -a open=(${(M)found:#*:})
    found=(${found:#*:})
    compadd -a found
    compadd -S '' -a open
}
if [ "$funcstack[1]" = _vmcloner ]; then
    _vmcloner "$@"
else
    compdef _vmcloner vmcloner
fi
"""

FISH = r"""# fish completion for vmcloner
function __vmcloner_words
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~' $HOME -- $words[1])
    $program complete --words -- $words[2..] "$current" 2>/dev/null
    or __fish_complete_path "$current"
end
complete -c vmcloner -f -a '(__vmcloner_words)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


class Complete(Base):
    """Print a script for completion in bash, zsh or fish.

    It asks vmcloner for the words that may follow: commands, options, and the names of fleets,
    clones, templates, pools, snapshots, networks, hosts and runs. bash: vmcloner complete >
    /etc/bash_completion.d/vmcloner; zsh: to a file _vmcloner in a folder of $fpath; fish: to
    ~/.config/fish/completions/vmcloner.fish.
    """

    example = "source <(vmcloner complete --shell bash)"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--shell", choices=tuple(SCRIPTS), default="bash", help="The shell (default bash)."
        )
        # For the scripts: what may the last of the words after "--" be?
        parser.add_argument("--words", action="store_true", help=argparse.SUPPRESS)
        parser.add_argument("line", nargs="*", help=argparse.SUPPRESS)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Print the script, or words; returns the exit code.

        :raises UsageError: there are arguments.
        """
        if not parsed_args.words:
            if parsed_args.line:
                raise UsageError("complete takes no arguments", hint="--shell zsh, for example")
            self.app.stdout.write(SCRIPTS[parsed_args.shell])
            return 0
        found = candidates(self.app, parsed_args.line or [""])
        if found is None:
            return FILES
        self.app.stdout.write("".join(f"{word}\n" for word in found))
        return 0
