"""The table of errors: every class is real, and every message says what to do."""

from __future__ import annotations

import pytest

from catalog import errors as catalog_errors
from conifer_cli import errors
from conifer_cli.errors import explain, table
from engine import errors as engine_errors


def test_only_the_tables_classes_are_known():
    assert set(errors.known_exceptions()) == set(table())
    assert engine_errors.GGUFError in errors.known_exceptions()
    assert ZeroDivisionError not in errors.known_exceptions()


@pytest.mark.parametrize("tree", [catalog_errors, engine_errors])
def test_every_error_of_the_wings_is_in_the_table(tree):
    for item in vars(tree).values():
        if isinstance(item, type) and issubclass(item, Exception):
            assert any(kind in table() for kind in item.__mro__)


@pytest.mark.parametrize(
    ("error", "code", "message", "hint"),
    [
        (catalog_errors.UnknownModel("qwn", "qwen3-8b"), 2, "'qwn'", "Did you mean qwen3-8b?"),
        (catalog_errors.UnknownModel("a b"), 2, "'a b'", '`conifer run -p "a b"`'),
        (catalog_errors.ModelNotFound("no such repository"), 5, "no such", "list --catalog"),
        (catalog_errors.AccessDenied("gated"), 5, "gated", "HF_TOKEN"),
        (catalog_errors.HubUnreachable("timed out"), 5, "timed out", "HTTPS_PROXY"),
        (catalog_errors.VerificationError("f", "aa", "bb"), 5, "expected aa", "discarded"),
        (catalog_errors.StoreError("disk full"), 5, "disk full", "CONIFER_HOME"),
        (catalog_errors.UnknownModel("a\tb"), 2, "'a\\tb'", "`conifer run -p"),
        (catalog_errors.BadSetting("HF_TOKEN: odd"), 5, "HF_TOKEN", "unset"),
        (catalog_errors.IndexUnreachable("no pip"), 5, "no pip", "PIP_INDEX_URL"),
        (catalog_errors.NoSpace("too few"), 4, "too few", "conifer rm"),
        (engine_errors.GGUFError("bad magic"), 3, "bad magic", ""),
        (engine_errors.MoreNeeded(100), 3, "100", ""),
        (engine_errors.UnsupportedError("IQ2_XXS"), 3, "IQ2_XXS", "`conifer fit`"),
        (engine_errors.DoesNotFit("too large"), 4, "too large", "smaller context"),
        (engine_errors.ContextOverflow(5000, 4096), 4, "5,000 tokens do not fit", ""),
        (engine_errors.NumericError("NaN"), 1, "NaN", "stock"),
        (engine_errors.BackendError("install [cpu]"), 1, "install [cpu]", ""),
        (errors.UsageError("twice", "once"), 2, "twice", "once"),
        (errors.NoRoom("large", ("try a", "try b")), 4, "large", "try a\ntry b"),
        (errors.Unreadable("/y: Permission denied"), 1, "/y: Permission denied", "Check"),
        (MemoryError(), 4, "out of memory", "smaller context"),
    ],
)
def test_an_error_is_explained(error, code, message, hint):
    got = explain(error)
    assert got[0] == code
    assert message in got[1] and hint in got[2]
