"""`conifer completion SHELL`: a script for bash, zsh or fish, and the candidates for it.

At every Tab the scripts run `conifer __complete` with the words so far, the last one unfinished.
It prints one candidate per line, followed by a tab and a description; if there are none, the shell
completes file names. Completion never opens a socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.terminal import console

if TYPE_CHECKING:
    from typer.core import TyperCommand

QUERY = "__complete"
MODEL = "MODEL"  # metavar of model arguments
INSTALLED_ONLY = ("rm", "verify")  # these take installed models only

BASH = """\
_conifer() {
    local line=${COMP_LINE:0:COMP_POINT} current head IFS=$' \\t\\n'
    local -a words
    # Readline splits words at colons, which the names of models have.
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]}-1]}
    IFS=$'\\n'
    COMPREPLY=($(conifer __complete -- "${words[@]:1}" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]%%$'\\t'*}")
    if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
        head=${current%"${current##*:}"}
        COMPREPLY=("${COMPREPLY[@]#"$head"}")
    fi
}
complete -o default -F _conifer conifer
"""

ZSH = """\
#compdef conifer
_conifer() {
    local -a found described
    local line
    found=("${(@f)$(conifer __complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -z "${found[1]}" ]]; then
        _files
        return
    fi
    for line in "${found[@]}"; do
        described+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}")
    done
    _describe -V conifer described
}
if [[ "${funcstack[1]}" == _conifer ]]; then
    _conifer "$@"
else
    compdef _conifer conifer
fi
"""

FISH = """\
function __conifer_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found (conifer __complete -- $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -eq 0
        __fish_complete_path "$current"
    else
        printf '%s\\n' $found
    end
end
complete -c conifer -k -f -a '(__conifer_complete)'
"""


class Shell(StrEnum):
    """A supported shell."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


SCRIPTS = {Shell.BASH: BASH, Shell.ZSH: ZSH, Shell.FISH: FISH}


@dataclass(frozen=True)
class Candidate:
    """A completion and its description."""

    word: str
    about: str = ""


def print_script(shell: Shell) -> int:
    """Print the completion script of a shell."""
    console.write_stdout(SCRIPTS[shell])
    return errors.OK


def print_candidates(program: Any, words: list[str]) -> int:
    """Print completions of the last word, each with a tab and its description."""
    *before, current = words or [""]
    console.print_lines(
        f"{found.word}\t{found.about}" for found in candidates(program, before, current)
    )
    return errors.OK


def candidates(program: Any, before: list[str], current: str) -> Iterator[Candidate]:
    """Yield completions of `current` after the words `before`. program: the tree of commands."""
    for found in _possible(program, before, current):
        if found.word.startswith(current):
            yield found


def _possible(program: Any, before: list[str], current: str) -> Iterator[Candidate]:
    name = next((word for word in before if not word.startswith("-")), None)
    if name is None:
        yield from _options(program) if current.startswith("-") else _commands(program)
        return
    command = program.commands.get(name)
    if command is None:
        return
    waiting, arguments = _read(command, before[before.index(name) + 1 :])
    if waiting is not None:
        yield from _choices(waiting)
    elif current.startswith("-"):
        yield from _options(command)
    else:
        yield from _arguments(command, arguments, current)


def _read(command: Any, words: list[str]) -> tuple[Any, int]:
    """Return the option that still needs a value, if any, and the number of arguments."""
    options = {word: option for option in _named(command) for word in _words(option)}
    waiting, arguments = None, 0
    for word in words:
        if waiting is not None:
            waiting = None
        elif word.startswith("-"):
            option = options.get(word)
            waiting = None if option is None or option.is_flag else option
        else:
            arguments += 1
    return waiting, arguments


def _commands(program: Any) -> Iterator[Candidate]:
    for name, command in program.commands.items():
        if not command.hidden:
            yield Candidate(name, command.get_short_help_str(100))


def _options(command: TyperCommand) -> Iterator[Candidate]:
    yield from (Candidate(word, _about(o)) for o in _named(command) for word in _words(o))
    yield Candidate("--help", "Show this message and exit.")


def _named(command: Any) -> Iterator[Any]:
    """Yield the visible options of a command."""
    yield from (p for p in command.params if p.param_type_name == "option" and not p.hidden)


def _choices(parameter: Any) -> Iterator[Candidate]:
    """Yield the values of an enumerated option or argument."""
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        yield from map(Candidate, kind)


def _words(option: Any) -> list[str]:
    """Return the names of an option, long ones first."""
    words = [*option.opts, *option.secondary_opts]
    return sorted(words, key=lambda word: not word.startswith("--"))


def _about(option: Any) -> str:
    return " ".join((option.help or "").split())


def _arguments(command: Any, count: int, current: str) -> Iterator[Candidate]:
    """Yield values of the next argument after `count` others."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    if not arguments:
        return
    argument = arguments[0]
    if count and argument.nargs != -1:
        return
    if argument.metavar and MODEL in argument.metavar:
        yield from _models(command.name, current)
    else:
        yield from _choices(argument)


def _models(command: str, current: str) -> Iterator[Candidate]:
    """Yield model names: installed ones first, then the catalog."""
    from catalog import entries
    from conifer_cli.acquire import open_store
    from conifer_cli.commands.list import name_of
    from conifer_cli.terminal.format import count, size

    here = {name_of(model): model for model in open_store().installed()}
    for name, model in here.items():
        yield Candidate(name, f"{size(model.size_bytes)}, on this machine")
    if command in INSTALLED_ONLY:
        return
    for entry in entries().values():
        if current.startswith(f"{entry.id}:"):
            files = [f for f in entry.files if f.quant and f"{entry.id}:{f.quant}" not in here]
            for file in files:
                about = size(file.size_bytes) if file.size_bytes else "size unknown"
                yield Candidate(f"{entry.id}:{file.quant}", about)
        elif entry.id not in here:
            yield Candidate(entry.id, f"{count(entry.total_parameters)}, {entry.licence}")
