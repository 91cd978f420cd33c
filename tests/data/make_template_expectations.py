"""Make tests/data/rendered.json: transformers' renderings of every template in a folder.

    python make_template_expectations.py TEMPLATES OUTPUT.json

Needs transformers and jinja2. TEMPLATES holds *.jinja files; the conversations are those of
tests/support/conversations.py. Where a template refuses one, null is stored.
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils import chat_template_utils

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.conversations import BOS, CONVERSATIONS, EOS, NOW


class FixedClock(datetime):
    """A datetime whose present never changes."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def rendering(source: str, conversation: dict[str, Any]) -> str | None:
    """Render as `apply_chat_template` does; None if the template refuses."""
    arguments = {"add_generation_prompt": True, "bos_token": BOS, "eos_token": EOS, **conversation}
    messages = arguments.pop("messages")
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=source, **arguments
        )
    except (jinja2.TemplateError, TypeError) as error:
        print(type(error).__name__, error, file=sys.stderr)
        return None
    return str(texts[0])


def main(templates: str, output: str) -> None:
    """Render every template for every conversation."""
    chat_template_utils.datetime = FixedClock
    rendered = {
        path.name: {
            name: rendering(path.read_text(encoding="utf-8"), conversation)
            for name, conversation in CONVERSATIONS.items()
        }
        for path in sorted(Path(templates).glob("*.jinja"))
    }
    text = json.dumps(rendered, ensure_ascii=False, indent=1)
    Path(output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
