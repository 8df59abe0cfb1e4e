"""Completion scripts for shells: the commands, their options, and the choices of an option."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

SHELLS = ("bash", "zsh")

_SCRIPT = """\
# {prog}: completion for {shell}. Add to your {shell}'s start file: eval "$({prog} completion {shell})"
{head}_{name}_complete() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
    case "${{COMP_WORDS[1]}}:$before" in
{choices}
    esac
    if [ -z "$words" ]; then case "${{COMP_WORDS[1]}}" in
{options}
    esac; fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _{name}_complete {prog}
"""


def script(prog: str, shell: str, commands: Mapping[str, argparse.ArgumentParser | None]) -> str:
    """Return the script of a shell.

    Args:
        prog: The program's name.
        shell: One of SHELLS.
        commands: The parser of each command; None for one without options.
    """
    choices, options = [], []
    for command, parser in commands.items():
        words = []
        for action in parser._actions if parser is not None else []:
            names = [name for name in action.option_strings if name.startswith("--")]
            words += names
            displayed = getattr(action.type, "metavar", "") or action.metavar or ""
            if names and isinstance(displayed, str) and displayed.startswith("{"):
                values = displayed.strip("{}").replace(",", " ")
                choices += [f'      {command}:{name}) words="{values}" ;;' for name in names]
        options.append(f'      {command}) words="{" ".join(words)}" ;;')
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return _SCRIPT.format(
        prog=prog,
        name=prog.replace("-", "_"),
        shell=shell,
        head=head,
        commands=" ".join(commands),
        choices="\n".join(choices),
        options="\n".join(options),
    )
