"""What the documents tell people to type must exist: commands, options, methods, files, names in code."""

from __future__ import annotations

import ast
import re
import shlex
from importlib.metadata import metadata
from pathlib import Path

import pytest
import typer
import yaml

from mimbench import registry, settings
from mimbench.cli import app
from mimbench.request import make_request
from mimbench.weights.entries import find_entry
from mimbench.weights.given import is_given

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BOARDS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


COMMANDS = [
    part.strip()
    for block in blocks(README, "bash") + blocks(BOARDS, "bash")
    for line in block.splitlines()
    for part in line.split("&&")
    if part.strip()
]


def programs(command: str) -> list[str]:
    """The words of a command, its program without the environment's folder."""
    words = shlex.split(command)
    return [Path(words[0]).name, *words[1:]]


def parse_mimbench(words: list[str]) -> typer.Context:
    """The context of the innermost command, as parsed by the real command line; nothing is run."""
    command, context = typer.main.get_command(app), None
    while True:
        context = command.make_context(words[0] if context is None else command.name, words[1:], context)
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if not hasattr(command, "resolve_command") or not rest:
            return context
        name, command, rest = command.resolve_command(context, rest)
        words = [name, *rest]


def test_readme_has_the_commands_this_looks_for():
    used = {programs(command)[0] for command in COMMANDS}
    assert {"mimbench", "pip", "python", "python3", "torchrun"} <= used


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one_that_exists(command):
    program, *words = programs(command)
    if program == "torchrun":
        position = words.index("-m")
        program, words = words[position + 1], words[position + 2 :]
    if program == "mimbench":
        context = parse_mimbench([program, *words])
        if context.command.name == "run":
            check_run(context)
        for name in [words[-1]] if words[:2] == ["methods", "show"] else []:
            registry.find_method(name)
        if words[:2] in (["weights", "show"], ["weights", "get"], ["weights", "convert"]):
            for name in words[-1].split(","):
                find_entry(name)
        return
    if program == "pip":
        check_pip(words)
    elif words[0] == "-m":
        assert words[1] in ("venv", "pytest")
    else:
        assert (ROOT / words[0]).is_file()


def check_run(context: typer.Context) -> None:
    given = {
        name: value
        for name, value in context.params.items()
        if name != "file" and context.get_parameter_source(name).name == "COMMANDLINE"
    }
    if not context.params["file"]:
        check_request(make_request(given))


def check_request(request) -> None:
    owners = {}
    for name in request.named_protocols:
        key, _, recipe = name.partition(":")
        owners[name] = registry.find_protocol(key)
        assert not recipe or recipe in owners[name].presets
    for text in request.methods:
        for wanted in settings.parse_methods(text):
            if is_given(wanted.key):
                check_given(wanted.key)
                continue
            owners[wanted.key] = registry.find_method(wanted.key)
            own = {k: v for k, v in wanted.given.items() if "." not in k and not settings.is_provided(k)}
            settings.parse_settings(wanted.key, owners[wanted.key], own)
            for name in wanted.given.keys() - own.keys():  # "vqkd.vocabulary", "teacher", "vqkd.teacher"
                key, _, inner = name.rpartition(".")
                owner = registry.find_method(key or wanted.key)
                assert inner in (owner.needs if settings.is_provided(inner) else settings.defaults(owner))
    for name, value in request.set.items():
        owner, _, setting = name.partition(".")
        settings.parse_settings(owner, owners[owner], {setting: value})
    assert {spec.partition(":")[0] for spec in request.data} <= set(registry.datasets())


def check_given(text: str) -> None:
    """Of weights by name the catalogue's entries; where a file would lie is left open."""
    if text.partition("=")[2][:5] != "file:" and "@" in text:
        find_entry(text)


def check_pip(words: list[str]) -> None:
    assert words[:3] == ["install", "-c", "constraints.txt"]
    assert (ROOT / "constraints.txt").is_file()
    extras = set(re.findall(r"\[(.*?)\]", words[-1]))
    assert extras <= set(metadata("mimbench").get_all("Provides-Extra"))


def test_the_experiment_file_is_one_the_command_takes():
    (block,) = blocks(README, "yaml")
    check_request(make_request(yaml.safe_load(block)))


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_python_blocks_name_things_that_exist(text):
    found = 0
    for block in blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "mimbench":
                import mimbench

                assert callable(getattr(mimbench, node.attr))
                found += 1
    assert found or text is CONTRIBUTING


def test_readme_lists_every_method_protocol_and_dataset():
    named = set(re.findall(r"`([a-z0-9_]+)(?::[A-Z]+)?`", README))
    rows = {key for key, cls in registry.methods().items() if cls.card.role != "tokenizer"}
    assert rows <= named
    assert set(registry.protocols()) <= named
    assert set(registry.datasets()) <= named


@pytest.mark.slow
def test_the_table_of_methods_is_what_the_command_prints():
    """Made anew with: mimbench methods table"""
    from mimbench.method_table import markdown, methods_frame

    (shown,) = re.findall(r"<!-- methods: .*? -->\n(.*?)<!-- end of methods -->", README, re.DOTALL)
    assert shown == markdown(methods_frame())


def test_readme_says_how_long_the_default_trains():
    epochs = registry.datasets()["digits"]("").defaults.epochs
    assert f"for {epochs:g} epochs" in README


def test_readme_lists_every_benchmark():
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert f"`{script.name}`" in README


def test_every_entry_point_group_is_told():
    assert all(f'"{group}"' in README for group in registry.GROUPS.values())


def test_links_between_documents_lead_somewhere():
    for text in (README, CONTRIBUTING):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / target).exists(), target
