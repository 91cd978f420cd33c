"""What /set changes in a conversation, and what /show shows of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from conifer_cli.chat.completing import of
from conifer_cli.chat.editor import history_file
from conifer_cli.errors import UsageError
from conifer_cli.session.session import JSON_OBJECT
from conifer_cli.terminal import console
from conifer_cli.terminal.format import count, labelled, size

if TYPE_CHECKING:
    from conifer_cli.chat.conversation import Conversation

# The names people know from elsewhere -> ours in the engine's Settings, and how to read a value.
SAMPLING: dict[str, tuple[str, Callable[[str], float]]] = {
    "temperature": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repeat_penalty": ("repetition_penalty", float),
    "presence_penalty": ("presence_penalty", float),
}
OTHERS = ("num_ctx", "num_predict", "seed", "stop")
EFFORTS = ("low", "medium", "high")
PARAMETERS = (*SAMPLING, *OTHERS)


def turn(conversation: Conversation, rest: str) -> None:
    """Carry out /set."""
    word, _, value = rest.partition(" ")
    if not word:
        console.log_text("\n".join(f"/set {usage:31} {about}" for usage, about, _ in SETS.values()))
        return
    if word not in SETS:
        raise UsageError(f"there is no setting {word!r}", "/set lists them.")
    SETS[word][2](conversation, value.strip())


def _parameter(conversation: Conversation, rest: str) -> None:
    name, _, text = rest.partition(" ")
    if name not in PARAMETERS or not text.strip():
        raise UsageError(f"a parameter is one of {', '.join(PARAMETERS)}, and a value follows")
    try:
        _change(conversation, name, text.strip())
    except ValueError as error:
        raise UsageError(f"{name} cannot be {text.strip()!r}: {error}") from error
    console.log(f"{name} is {text.strip()}.")


def _change(conversation: Conversation, name: str, text: str) -> None:
    """Change one parameter. Raises ValueError."""
    if name == "num_ctx":
        _resize(conversation, text)
    elif name == "stop":
        conversation.session.change(stop=(text,))
    elif name == "num_predict":
        conversation.session.change(max_tokens=int(text))
    elif name == "seed":
        conversation.session.change(seed=int(text))
    else:
        ours, read = SAMPLING[name]
        value = read(text)
        if not math.isfinite(value):
            raise ValueError("it has to be a number")
        sampling = {**conversation.session.options.sampling, ours: value}
        conversation.session.change(sampling=sampling)


def _resize(conversation: Conversation, text: str) -> None:
    from conifer_cli.options import parse_context

    largest = conversation.session.judged.verdict.largest_context
    tokens = parse_context(text)
    if tokens > largest and not conversation.session.options.force:
        raise ValueError(f"{largest:,} tokens are the most that fit")
    conversation.resize(tokens)


def _system(conversation: Conversation, rest: str) -> None:
    if conversation.session.raw:
        raise UsageError("this model has no chat template, and so no system message")
    text = _unquoted(rest)
    conversation.session.change(system=text or None)
    messages = conversation.messages
    if messages and messages[0]["role"] == "system":
        del messages[0]
    messages[:0] = conversation.session.initial_messages()
    console.log("The system message is set." if text else "There is no system message now.")


def _unquoted(text: str) -> str:
    """Take the quotes around a text away, where they are a pair and there are no more of them."""
    for quote in ('"""', '"', "'"):
        bare = text.removeprefix(quote).removesuffix(quote)
        if len(bare) == len(text) - 2 * len(quote) and quote not in bare:
            return bare
    return text


def _think(conversation: Conversation, rest: str) -> None:
    if rest not in ("", *EFFORTS):
        raise UsageError(f"thinking can be {', '.join(EFFORTS)}, or left to the model")
    conversation.session.change(think=True, effort=rest or None)
    console.log("Thinking is asked for, of models that can.")


def _nothink(conversation: Conversation, rest: str) -> None:
    conversation.session.change(think=False, effort=None)
    console.log("No thinking is asked for.")


def _thinking(conversation: Conversation, rest: str) -> None:
    if rest not in ("show", "fold", "hide"):
        raise UsageError("thinking can be set to show, fold or hide")
    conversation.folds = rest == "fold"
    conversation.session.change(show_thinking=rest != "hide")
    console.log(f"Thinking: {rest}.")


def _format(conversation: Conversation, rest: str) -> None:
    if rest not in ("json", "text"):
        raise UsageError("the format can be json or text")
    conversation.session.change(grammar=JSON_OBJECT if rest == "json" else None)
    console.log(f"Answers are {'JSON objects' if rest == 'json' else 'text'} from here on.")


def _stats(shows: bool) -> Callable[[Conversation, str], None]:
    def change(conversation: Conversation, rest: str) -> None:
        conversation.shows_stats = shows
        console.log(f"Counts and rates after each answer: {'yes' if shows else 'no'}.")

    return change


def _history(keeps: bool) -> Callable[[Conversation, str], None]:
    def change(conversation: Conversation, rest: str) -> None:
        kept = conversation.desk.history = history_file() if keeps else None
        console.log(f"What you type is {'kept' if kept else 'not kept'} for the next time.")
        if keeps and not kept:
            console.log("CONIFER_NOHISTORY is set, or there is no line editor here.")

    return change


def _markdown(styled: bool) -> Callable[[Conversation, str], None]:
    def change(conversation: Conversation, rest: str) -> None:
        conversation.styled = styled and console.styles()
        console.log(f"Answers are shown {'styled' if conversation.styled else 'as they are'}.")

    return change


# word -> (usage, what it does, the doing)
SETS: dict[str, tuple[str, str, Callable[[Conversation, str], None]]] = {
    "parameter": ("parameter NAME VALUE", ", ".join(PARAMETERS), _parameter),
    "system": ("system TEXT", "the system message; none without TEXT", _system),
    "think": ("think [low|medium|high]", "ask for thinking", _think),
    "nothink": ("nothink", "ask for none", _nothink),
    "thinking": ("thinking show|fold|hide", "how thinking is shown", _thinking),
    "format": ("format json|text", "hold answers to one JSON object, or to nothing", _format),
    "verbose": ("verbose", "counts and rates after each answer", _stats(True)),
    "quiet": ("quiet", "no counts and rates", _stats(False)),
    "markdown": ("markdown", "show answers styled", _markdown(True)),
    "plain": ("plain", "show answers as they are", _markdown(False)),
    "history": ("history", "keep what is typed, for the next time", _history(True)),
    "nohistory": ("nohistory", "do not", _history(False)),
}
VALUES: dict[str, tuple[str, ...]] = {
    "parameter": PARAMETERS,
    "thinking": ("show", "fold", "hide"),
    "think": EFFORTS,
    "format": ("json", "text"),
}


def set_words(typed: str) -> list[str]:
    """Complete what follows /set."""
    word, space, rest = typed.partition(" ")
    if not space:
        return of(*SETS)(typed)
    return of(*VALUES.get(word, ()))(rest)


def shown(conversation: Conversation, rest: str) -> None:
    """Carry out /show."""
    if rest not in SHOWS:
        raise UsageError(f"{', '.join(SHOWS)} can be shown")
    console.log_text(SHOWS[rest](conversation))


def _show_info(conversation: Conversation) -> str:
    session = conversation.session
    judged, config = session.judged, session.model.config
    rows = [
        ("model", judged.name),
        ("file", str(judged.paths[0])),
        ("size", size(judged.size_bytes)),
        ("layers", f"{config.layers:,}"),
        ("vocabulary", f"{config.vocab:,}"),
        ("context", f"{conversation.context:,} of {config.context:,} tokens"),
        ("kernels", session.model.kernels.name),
    ]
    if judged.entry is not None:
        rows.insert(3, ("parameters", count(judged.entry.total_parameters)))
    return "\n".join(labelled(rows))


def _show_system(conversation: Conversation) -> str:
    return conversation.session.options.system or "There is no system message."


def _show_template(conversation: Conversation) -> str:
    template = conversation.session.model.template
    return template.source if template is not None else "This model has no chat template."


def _show_parameters(conversation: Conversation) -> str:
    settings = conversation.session.settings
    values: dict[str, Any] = {name: getattr(settings, ours) for name, (ours, _) in SAMPLING.items()}
    values["num_ctx"] = conversation.context
    values["num_predict"] = settings.max_tokens or "as many as there is room for"
    values["seed"] = "another for each answer" if settings.seed is None else settings.seed
    values["stop"] = ", ".join(map(repr, settings.stop)) or "none"
    return "\n".join(labelled([(name, str(value)) for name, value in values.items()]))


def _show_thinking(conversation: Conversation) -> str:
    return conversation.thoughts or "Nothing was thought before the last answer."


SHOWS: dict[str, Callable[[Conversation], str]] = {
    "info": _show_info,
    "system": _show_system,
    "template": _show_template,
    "parameters": _show_parameters,
    "thinking": _show_thinking,
}
show_words = of(*SHOWS)
