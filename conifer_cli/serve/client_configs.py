"""The configuration of clients that use the server, for --print-config and docs/serving.md."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass

RUN_HERE = "run here"
FROM_DOCS = "from its documentation"
PLACE_OF_KEY = re.compile(r"\bKEY\b")
NO_KEY = "none"  # to clients that require one, for a server without


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How to configure one client. text has URL, MODEL, CONTEXT and KEY as placeholders.

    tried: whether this configuration was run, or follows the client's documentation. refers: what
    to replace, and by what, so that the client reads the key from the environment. note: what else
    the client needs if there is a key.
    """

    name: str
    title: str
    where: str
    text: str
    tried: str = FROM_DOCS
    refers: tuple[tuple[str, str], ...] = ()
    note: str = ""


def _pretty(document: object) -> str:
    return json.dumps(document, indent=2)


OPENCODE = {
    "$schema": "https://opencode.ai/config.json",
    "provider": {
        "conifer": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Conifer",
            "options": {"baseURL": "URL/v1", "apiKey": "KEY"},
            "models": {"MODEL": {"name": "MODEL", "limit": {"context": 0, "output": 8192}}},
        }
    },
    "model": "conifer/MODEL",
}
ZED = {
    "language_models": {
        "openai_compatible": {
            "Conifer": {
                "api_url": "URL/v1",
                "available_models": [
                    {
                        "name": "MODEL",
                        "max_tokens": 0,
                        "capabilities": {"tools": True, "images": False},
                    }
                ],
            }
        }
    }
}
CODEX = """\
model = "MODEL"
model_provider = "conifer"
model_context_window = CONTEXT

[model_providers.conifer]
name = "Conifer"
base_url = "URL/v1"
wire_api = "responses"
"""
CLAUDE_CODE = """\
export ANTHROPIC_BASE_URL=URL
export ANTHROPIC_AUTH_TOKEN=KEY
export ANTHROPIC_MODEL=MODEL
export ANTHROPIC_SMALL_FAST_MODEL=MODEL
claude
"""
CONTINUE = """\
name: Conifer
version: 1.0.0
schema: v1
models:
  - name: MODEL
    provider: openai
    model: MODEL
    apiBase: URL/v1
    apiKey: KEY
    roles: [chat, edit, apply]
    defaultCompletionOptions:
      contextLength: CONTEXT
"""
AIDER = """\
export OPENAI_API_BASE=URL/v1
export OPENAI_API_KEY=KEY
aider --model openai/MODEL
"""
LLM = """\
- model_id: conifer
  model_name: MODEL
  api_base: "URL/v1"
"""
OPENAI_SDK = """\
from openai import OpenAI

client = OpenAI(base_url="URL/v1", api_key="KEY")
reply = client.chat.completions.create(
    model="MODEL", messages=[{"role": "user", "content": "Hello"}]
)
print(reply.choices[0].message.content)
"""
ANTHROPIC_SDK = """\
from anthropic import Anthropic

client = Anthropic(base_url="URL", api_key="KEY")
reply = client.messages.create(
    model="MODEL", max_tokens=500, messages=[{"role": "user", "content": "Hello"}]
)
print(reply.content[-1].text)
"""
LITELLM = """\
model_list:
  - model_name: conifer
    litellm_params:
      model: openai/MODEL
      api_base: URL/v1
      api_key: KEY
"""
IN_SHELL = (("=KEY", '="$CONIFER_API_KEY"'),)
IN_PYTHON = (("from ", "import os\n\nfrom "), ('"KEY"', 'os.environ["CONIFER_API_KEY"]'))
EXPORTED = "it needs CONIFER_API_KEY in its environment"
CLIENT_CONFIGS = {
    config.name: config
    for config in (
        ClientConfig(
            "opencode",
            "opencode",
            "opencode.json",
            _pretty(OPENCODE),
            RUN_HERE,
            (("KEY", "{env:CONIFER_API_KEY}"),),
            EXPORTED,
        ),
        ClientConfig(
            "codex",
            "Codex",
            "~/.codex/config.toml",
            CODEX,
            refers=(("wire_api", 'env_key = "CONIFER_API_KEY"\nwire_api'),),
            note=EXPORTED,
        ),
        ClientConfig(
            "claude-code", "Claude Code", "a shell", CLAUDE_CODE, refers=IN_SHELL, note=EXPORTED
        ),
        ClientConfig("zed", "Zed", "settings.json", _pretty(ZED), note=EXPORTED),
        ClientConfig(
            "continue",
            "Continue",
            "~/.continue/config.yaml",
            CONTINUE,
            refers=(("KEY", "${{ secrets.CONIFER_API_KEY }}"),),
            note="it needs CONIFER_API_KEY in ~/.continue/.env",
        ),
        ClientConfig("aider", "Aider", "a shell", AIDER, refers=IN_SHELL, note=EXPORTED),
        ClientConfig(
            "llm",
            "llm",
            "extra-openai-models.yaml",
            LLM,
            RUN_HERE,
            (("  api_base", "  api_key_name: conifer\n  api_base"),),
            'it needs the key once: llm keys set conifer --value "$CONIFER_API_KEY"',
        ),
        ClientConfig("openai", "OpenAI's SDK", "Python", OPENAI_SDK, RUN_HERE, IN_PYTHON, EXPORTED),
        ClientConfig(
            "anthropic", "Anthropic's SDK", "Python", ANTHROPIC_SDK, RUN_HERE, IN_PYTHON, EXPORTED
        ),
        ClientConfig(
            "litellm",
            "LiteLLM",
            "config.yaml",
            LITELLM,
            refers=(("KEY", "os.environ/CONIFER_API_KEY"),),
            note=EXPORTED,
        ),
    )
}


def configured(
    config: ClientConfig, url: str, model: str, context: int, key: str | None = NO_KEY
) -> str:
    """Return a client's configuration for a server. key: None to refer to CONIFER_API_KEY.

    A client whose configuration has no place for a key always refers to it.
    """
    text = config.text.replace('"context": 0', f'"context": {context}')
    text = text.replace('"output": 8192', f'"output": {min(8192, context // 4)}')
    text = text.replace('"max_tokens": 0', f'"max_tokens": {context}')
    if refers_to_key(config, key):
        for old, new in config.refers:
            text = text.replace(old, new, 1)
    values = {"URL": url, "MODEL": model, "CONTEXT": str(context)}
    for name, value in (*values.items(), ("KEY", _quoted(config, key or ""))):
        text = _replaced(text, name, value)
    return text.rstrip("\n")


def refers_to_key(config: ClientConfig, key: str | None) -> bool:
    """True if the client reads the key from elsewhere, as some always do."""
    return key is None or (key != NO_KEY and not PLACE_OF_KEY.search(config.text))


def _quoted(config: ClientConfig, key: str) -> str:
    """Return a key as the format writes it. JSON and Python have it in quotation marks."""
    if config.where == "a shell":
        return shlex.quote(key)
    text = json.dumps(key)
    return text if config.where.endswith(".yaml") and key != NO_KEY else text[1:-1]


def _replaced(text: str, name: str, value: str) -> str:
    """Replace a placeholder where it is not a part of a longer name, such as ANTHROPIC_MODEL."""
    return re.sub(rf"(?<![A-Za-z_]){name}(?![A-Z_=])", lambda _: value, text)
