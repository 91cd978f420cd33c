"""The commands for what Conifer keeps for the user: conversations, defaults, aliases and presets.

As in `app`, annotations are not strings, and each command imports its code when it runs.
"""

from typing import Annotated

import typer

from conifer_cli import options
from conifer_cli.help import Program

app = Program()


@app.command(
    "List and search past conversations.",
    "conifer chats",
    "conifer chats search sourdough",
    "conifer chats 12",
    "conifer run --continue",
    implied=(options.ChatsAction.SHOW.value, options.ChatsAction.SEARCH.value),
)
def chats(
    action: Annotated[
        options.ChatsAction, typer.Argument(help="What to do. An ID alone means show.")
    ] = options.ChatsAction.LIST,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="ID|WORD", help="Conversations, or words.")
    ] = None,
    everything: options.AllChats = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> int:
    """List past conversations, or search, show, export (as Markdown) or remove some.

    They are kept on this machine, readable by you alone. `history = false` in config.toml,
    CONIFER_NOHISTORY=1 or /set nohistory in a chat turn that off.
    """
    from conifer_cli.commands.chats import run_chats

    return run_chats(action.value, words or [], everything, yes, as_json)


@app.command(
    "Choose the model that run uses by default.",
    "conifer default qwen3-30b-a3b",
    "conifer default --unset",
    rare=True,
)
def default(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="The model.")] = None,
    unset: options.Unset = False,
) -> int:
    """Show or choose the model that `conifer run` uses if the command line names none.

    It is kept as `model` in config.toml. CONIFER_MODEL overrides it.
    """
    from conifer_cli.commands.settings import default_model

    return default_model(model, unset)


@app.command(
    "Give a model another name.",
    "conifer alias fast=qwen3-30b-a3b:Q4_K_M",
    "conifer alias --remove fast",
    rare=True,
)
def alias(
    definition: Annotated[
        str | None, typer.Argument(metavar="NAME=MODEL", help="The new name, and the model.")
    ] = None,
    remove: options.RemoveAlias = None,
) -> int:
    """List the aliases, or add one. An alias works wherever a model's name does."""
    from conifer_cli.commands.settings import alias as run_alias

    return run_alias(definition, remove)


@app.command(
    "List and edit presets, the options of run under a name.",
    "conifer run -m qwen3-30b-a3b -s 'Be brief.' --temperature 0 --save-preset brief",
    "conifer run -t brief",
    "conifer presets edit brief",
    rare=True,
)
def presets(
    context: typer.Context,
    action: Annotated[options.PresetAction, typer.Argument(help="What to do.")] = (
        options.PresetAction.LIST
    ),
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The preset.")] = None,
    yes: options.Yes = False,
) -> int:
    """List the presets, or show, edit or remove one. `conifer run -t NAME` uses it.

    A preset is a TOML file. Its keys are the long names of the options of run, and template: a
    prompt with {input} for the prompt and other names in braces for the values of --var.
    """
    from conifer_cli.commands.settings import manage_presets

    return manage_presets(context.find_root(), action.value, name, yes)


@app.command(
    "Show what is set, and where.", "conifer config", "conifer config edit", "conifer config path"
)
def config(
    context: typer.Context,
    action: Annotated[options.ConfigAction, typer.Argument(help="What to do.")] = (
        options.ConfigAction.SHOW
    ),
    as_json: options.Json = False,
) -> int:
    """Show the settings in the environment and in config.toml, print its path, or edit it."""
    from conifer_cli.commands.settings import configure

    return configure(context.find_root(), action.value, as_json)
