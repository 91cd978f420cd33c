"""`conifer completion SHELL`: print a completion script for bash, zsh or fish.

On Tab, the script runs `conifer __complete` with the words typed so far, including the unfinished
one. The command prints one candidate per line, followed by a tab and a description. If it prints
nothing, the shell completes file names. Completion never opens a socket. The reasons for not
using Typer's completion are in docs/decisions/0011-shell-completion.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from conifer_cli import errors
from conifer_cli.options import Shell, open_store
from conifer_cli.terminal import console

MODEL = "MODEL"  # metavar for model arguments
INSTALLED_ONLY = ("rm", "verify")

BASH = """\
_conifer() {
    local line=${COMP_LINE:0:COMP_POINT} current head IFS=$' \\t\\n'
    local -a words
    # Readline splits words at colons, which model names contain.
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
complete -o default -o nosort -F _conifer conifer 2>/dev/null ||
    complete -o default -F _conifer conifer  # bash 3
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


SCRIPTS = {Shell.BASH: BASH, Shell.ZSH: ZSH, Shell.FISH: FISH}


class Candidate(NamedTuple):
    """A completion candidate and its description."""

    word: str
    about: str = ""


def print_script(shell: Shell) -> int:
    """Print the completion script for a shell."""
    console.write_stdout(SCRIPTS[shell])
    return errors.OK


def print_candidates(program: Any, words: list[str]) -> int:
    """Print candidates for the last word, each followed by a tab and a description."""
    *before, current = words or [""]
    console.print_lines("\t".join(found) for found in candidates(program, before, current))
    return errors.OK


def candidates(program: Any, before: list[str], current: str) -> list[Candidate]:
    """Return candidates for `current` after the words `before`. program: the command tree."""
    possible = _possible(program, before, current)
    return [found for found in possible if found.word.startswith(current)]


def _possible(program: Any, before: list[str], current: str) -> Iterable[Candidate]:
    name = next((word for word in before if not word.startswith("-")), None)
    if name is None:
        return _options(program) if current.startswith("-") else _commands(program)
    command = program.commands.get(name)
    if command is None:
        return []
    unfinished, arguments = _read(command, before[before.index(name) + 1 :])
    if unfinished is not None:
        named = _NAMES.get(unfinished.name)
        return named(command.name, current) if named else _choices(unfinished)
    return _options(command) if current.startswith("-") else _values(command, arguments, current)


def _read(command: Any, words: list[str]) -> tuple[Any, int]:
    """Return the option that still needs a value, if any, and the number of arguments."""
    options = {name: option for option in _visible(command) for name in _names(option)}
    unfinished, arguments = None, 0
    for word in words:
        if unfinished is not None:
            unfinished = None
        elif not word.startswith("-"):
            arguments += 1
        elif word in options and not options[word].is_flag:
            unfinished = options[word]
    return unfinished, arguments


def _commands(program: Any) -> Iterator[Candidate]:
    for name, command in program.commands.items():
        if not command.hidden:
            yield Candidate(name, command.get_short_help_str(100))


def _options(command: Any) -> Iterator[Candidate]:
    for option in _visible(command):
        about = " ".join((option.help or "").split())
        yield from (Candidate(name, about) for name in _names(option))
    yield Candidate("--help", "Show this message and exit.")


def _visible(command: Any) -> Iterator[Any]:
    return (p for p in command.params if p.param_type_name == "option" and not p.hidden)


def _names(option: Any) -> list[str]:
    """Return an option's names, long ones first."""
    names = [*option.opts, *option.secondary_opts]
    return sorted(names, key=lambda name: not name.startswith("--"))


def _choices(parameter: Any) -> Iterator[Candidate]:
    return map(Candidate, parameter.type_descriptor.choices or ())


def _values(command: Any, count: int, current: str) -> Iterable[Candidate]:
    """Return candidates for the next argument after `count` arguments."""
    argument = next((p for p in command.params if p.param_type_name == "argument"), None)
    if argument is None or (count and argument.nargs != -1):
        return []
    return _models(command.name, current) if argument.metavar == MODEL else _choices(argument)


def _models(command: str, current: str) -> Iterator[Candidate]:
    """Yield the names of installed models, then of models in the catalog."""
    from catalog import entries
    from catalog.store.store import name_of
    from conifer_cli.terminal.format import count, size

    here = {name_of(model): model for model in open_store().installed()}
    for name, model in here.items():
        yield Candidate(name, f"{size(model.size_bytes)}, on this machine")
    if command in INSTALLED_ONLY:
        return
    for entry in entries().values():
        if current.startswith(f"{entry.id}:"):
            for file in entry.files:
                about = size(file.size_bytes) if file.size_bytes else "size unknown"
                if file.quant and f"{entry.id}:{file.quant}" not in here:
                    yield Candidate(f"{entry.id}:{file.quant}", about)
        elif entry.id not in here:
            yield Candidate(entry.id, f"{count(entry.total_parameters)}, {entry.licence}")


def _machines(command: str, current: str) -> Iterator[Candidate]:
    """Yield the machines of --machine, with a memory size where one is needed."""
    from engine.fit.machine_specs import machine_specs, models_of

    for key, spec in machine_specs().items():
        sizes = spec.memory_gb or spec.sold_gb
        sized = len(sizes) > 1 or (not sizes and current.startswith(key))
        yield from (Candidate(name, spec.name) for name in (models_of(key) if sized else [key]))


def _presets(command: str, current: str) -> Iterator[Candidate]:
    from conifer_cli.presets import names

    return map(Candidate, names())


# Options whose values are names, by the names of their parameters.
_NAMES = {"machine": _machines, "named": _models, "preset": _presets}
