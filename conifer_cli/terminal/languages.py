"""The programming languages that `highlight` knows: their comments, quotes and keywords."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Language:
    """How to read a language. words, constants: separated by spaces.

    comments: what starts a comment that ends with its line. blocks: pairs of marks around text that
    may span lines: strings if the first mark is made of quotes or "[", otherwise comments. quotes:
    each begins a string that ends on its line. hyphens: a name may contain "-". keys: a name before
    a colon is a key. decorators: "@name" is one word. tags: "<name" and "</name" are one word.
    """

    words: str = ""
    constants: str = "true false null"
    comments: tuple[str, ...] = ("//",)
    blocks: tuple[tuple[str, str], ...] = (("/*", "*/"),)
    quotes: str = "\"'"
    ignore_case: bool = False
    hyphens: bool = False
    keys: bool = False
    decorators: bool = False
    tags: bool = False


_HASH, _NO_BLOCKS = ("#",), ()
_MARKUP = Language(constants="", comments=(), blocks=(("<!--", "-->"),), quotes='"', tags=True)
_CSS = Language(constants="", comments=(), hyphens=True, keys=True, decorators=True)
_SHELL = Language(
    "case do done elif else esac exit export fi for function if in local return set shift source "
    "then until while",
    constants="true false",
    comments=_HASH,
    blocks=_NO_BLOCKS,
    hyphens=True,
)
_C_WORDS = (
    "auto break case char const continue default do double else enum extern float for goto if "
    "inline int long register return short signed sizeof static struct switch typedef union "
    "unsigned void volatile while"
)
_C = Language(f"{_C_WORDS} bool", "true false NULL nullptr")
_CPP = Language(
    f"{_C_WORDS} bool catch class co_await co_return concept constexpr delete explicit final "
    "friend mutable namespace new noexcept operator override private protected public requires "
    "template this throw try typename using virtual",
    "true false NULL nullptr",
)
_SCRIPT_WORDS = (
    "async await break case catch class const continue debugger default delete do else export "
    "extends finally for from function get if import in instanceof let new of return set static "
    "super switch this throw try typeof var void while with yield"
)
_SCRIPT_BLOCKS = (("/*", "*/"), ("`", "`"))
_SCRIPT = Language(_SCRIPT_WORDS, "true false null undefined NaN Infinity", blocks=_SCRIPT_BLOCKS)
_TYPE_SCRIPT = Language(
    f"{_SCRIPT_WORDS} abstract any as boolean declare enum implements interface is keyof namespace "
    "never number private protected public readonly string type unknown",
    "true false null undefined NaN Infinity",
    blocks=_SCRIPT_BLOCKS,
    decorators=True,
)

_LANGUAGES = {
    "bash sh shell zsh console shell-session shellscript": _SHELL,
    "c h": _C,
    "cpp c++ cc cxx hpp cuda objective-c objc": _CPP,
    "csharp c# cs": Language(
        "abstract as async await base bool break byte case catch char class const continue decimal "
        "default delegate do double else enum event explicit finally fixed float for foreach get "
        "goto if implicit in int interface internal is lock long namespace new object operator out "
        "override params private protected public readonly record ref return sealed set short "
        "sizeof static string struct switch this throw try typeof uint using var virtual void "
        "where while yield"
    ),
    "css scss sass less": _CSS,
    "dart": Language(
        "abstract as async await break case catch class const continue default do else enum export "
        "extends extension factory final for get if implements import in is late library mixin new "
        "on operator part required return set static super switch this throw try typedef var void "
        "while with yield",
        blocks=(("/*", "*/"), ("'''", "'''"), ('"""', '"""')),
        decorators=True,
    ),
    "diff patch udiff": Language(),  # read by line, not by word
    "dockerfile docker containerfile": Language(
        "ADD ARG AS CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL USER VOLUME "
        "WORKDIR",
        "",
        _HASH,
        _NO_BLOCKS,
    ),
    "elixir ex exs": Language(
        "after alias and case catch cond def defmodule defp defstruct do else end fn for if import "
        "in not or quote raise receive require rescue try unless use when with",
        "true false nil",
        _HASH,
        (('"""', '"""'),),
    ),
    "go golang": Language(
        "break case chan const continue default defer else fallthrough for func go goto if import "
        "interface map package range return select struct switch type var",
        "true false nil iota",
        blocks=(("/*", "*/"), ("`", "`")),
    ),
    "haskell hs": Language(
        "case class data deriving do else if import in infix infixl infixr instance let module "
        "newtype of then type where",
        "True False",
        ("--",),
        (("{-", "-}"),),
        '"',
    ),
    "html xml svg vue xhtml": _MARKUP,
    "ini cfg conf properties": Language(
        constants="true false", comments=("#", ";"), blocks=_NO_BLOCKS, hyphens=True
    ),
    "java": Language(
        "abstract assert boolean break byte case catch char class const continue default do double "
        "else enum extends final finally float for goto if implements import instanceof int "
        "interface long native new package private protected public record return sealed short "
        "static super switch synchronized this throw throws transient try var void volatile while",
        blocks=(("/*", "*/"), ('"""', '"""')),
        decorators=True,
    ),
    "javascript js jsx mjs cjs node": _SCRIPT,
    "json json5 jsonc jsonl": Language(keys=True),
    "julia jl": Language(
        "abstract baremodule begin break catch const continue do else elseif end export finally "
        "for function global if import in let local macro module mutable quote return struct try "
        "using where while",
        "true false nothing missing",
        _HASH,
        (("#=", "=#"), ('"""', '"""')),
        '"',
        decorators=True,
    ),
    "kotlin kt kts": Language(
        "abstract annotation as break by catch class companion const continue data do else enum "
        "final finally for fun if import in init inline interface internal is lateinit object open "
        "operator out override package private protected public return sealed super suspend this "
        "throw try typealias val var when while",
        blocks=(("/*", "*/"), ('"""', '"""')),
        decorators=True,
    ),
    "lua": Language(
        "and break do else elseif end for function goto if in local not or repeat return then "
        "until while",
        "true false nil",
        ("--",),
        (("--[[", "]]"), ("[[", "]]")),
    ),
    "make makefile mk": Language(
        "define else endef endif export ifdef ifeq ifndef ifneq include", "", _HASH, _NO_BLOCKS
    ),
    "nix": Language(
        "assert else if import in inherit let or rec then with",
        comments=_HASH,
        blocks=(("/*", "*/"), ("''", "''")),
        quotes='"',
        hyphens=True,
    ),
    "perl pl": Language(
        "and cmp continue do else elsif eq for foreach ge gt if last le local lt my ne next no or "
        "our package redo require return sub unless until use while",
        "undef",
        _HASH,
        _NO_BLOCKS,
    ),
    "php": Language(
        "abstract and array as break case catch class clone const continue declare default do echo "
        "else elseif enum extends final finally fn for foreach function global if implements "
        "include instanceof interface isset match namespace new or print private protected public "
        "readonly require require_once return static switch throw trait try unset use var while "
        "yield",
        comments=("//", "#"),
        ignore_case=True,
    ),
    "powershell ps1 pwsh": Language(
        "begin break catch class continue do else elseif end enum exit filter finally for foreach "
        "function if in param process return switch throw trap try until using while",
        "$true $false $null",
        _HASH,
        (("<#", "#>"),),
        ignore_case=True,
        hyphens=True,
    ),
    "python py python3 py3 pycon ipython": Language(
        "and as assert async await break case class continue def del elif else except finally for "
        "from global if import in is lambda match nonlocal not or pass raise return try type while "
        "with yield",
        "True False None self cls abs all any bool bytes dict enumerate filter float int "
        "isinstance iter len list map max min next object open print range repr reversed set "
        "sorted str sum super tuple zip",
        _HASH,
        (('"""', '"""'), ("'''", "'''")),
        decorators=True,
    ),
    "r rscript": Language(
        "break else for function if in next repeat return while",
        "TRUE FALSE NULL NA NaN Inf",
        _HASH,
        _NO_BLOCKS,
    ),
    "ruby rb": Language(
        "alias and begin break case class def defined? do else elsif end ensure for if in include "
        "loop module next not or private protected public raise redo require rescue retry return "
        "then undef unless until when while yield",
        "true false nil self super",
        _HASH,
        (("=begin", "=end"),),
    ),
    "rust rs": Language(
        "as async await break const continue crate dyn else enum extern fn for if impl in let loop "
        "match mod move mut pub ref return static struct trait type unsafe use where while bool "
        "char f32 f64 i8 i16 i32 i64 i128 isize str u8 u16 u32 u64 u128 usize",
        "true false self Self super None Some Ok Err",
        quotes='"',  # an apostrophe is more often a lifetime than a character
    ),
    "scala sc": Language(
        "abstract case catch class def do else enum extends final finally for given if implicit "
        "import lazy match new object override package private protected return sealed super then "
        "this throw trait try type using val var while with yield",
        blocks=(("/*", "*/"), ('"""', '"""')),
        quotes='"',
        decorators=True,
    ),
    "sql mysql postgresql postgres psql sqlite tsql plsql": Language(
        "add all alter and any as asc begin between by cascade case cast check column commit "
        "constraint create cross database declare default delete desc distinct drop else end "
        "except exists explain foreign from full function grant group having if in index inner "
        "insert intersect into is join key left like limit not null offset on or order outer over "
        "partition primary procedure references returning right rollback select set table then "
        "to transaction trigger truncate union unique update using values view when where with",
        "true false null",
        ("--",),
        ignore_case=True,
    ),
    "swift": Language(
        "actor as associatedtype async await break case catch class continue default defer deinit "
        "do else enum extension fallthrough fileprivate final for func guard if import in init "
        "inout internal is lazy let mutating nonisolated open operator override private protocol "
        "public repeat return self Self some static struct subscript super switch throw throws try "
        "typealias var weak where while",
        "true false nil",
        blocks=(("/*", "*/"), ('"""', '"""')),
        quotes='"',
        decorators=True,
    ),
    "toml": Language(
        constants="true false",
        comments=_HASH,
        blocks=(('"""', '"""'), ("'''", "'''")),
        hyphens=True,
    ),
    "typescript ts tsx mts cts": _TYPE_SCRIPT,
    "yaml yml": Language(
        constants="true false null yes no on off",
        comments=_HASH,
        blocks=_NO_BLOCKS,
        hyphens=True,
        keys=True,
    ),
    "zig": Language(
        "align allowzero and anytype asm async await break catch comptime const continue defer "
        "else enum errdefer error export extern fn for if inline noalias nosuspend or orelse "
        "packed pub resume return struct suspend switch test threadlocal try union unreachable "
        "usingnamespace var volatile while bool f32 f64 i8 i16 i32 i64 isize u8 u16 u32 u64 usize "
        "void",
        "true false null undefined",
        blocks=_NO_BLOCKS,
    ),
}

BY_NAME = {name: language for names, language in _LANGUAGES.items() for name in names.split()}
LINE_BY_LINE = frozenset(("diff", "patch", "udiff"))
FUNCTION_WORDS = frozenset(["def", "defp", "fn", "fun", "func", "function", "sub", "proc"])
CLASS_WORDS = frozenset(
    ["class", "defmodule", "enum", "interface", "module", "object", "protocol", "struct", "trait"]
)
