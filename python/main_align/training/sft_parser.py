"""SftParser: TRL's parser of the options of `main-align sft`. A mistake in them is an error of one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import yaml
from transformers.hf_argparser import string_to_bool
from trl import ModelConfig, ScriptArguments, TrlParser

from ..checks import check_types
from ..errors import UserError, UserTypeError
from .config import MutualAlignmentConfig

KINDS: Any = (ScriptArguments, MutualAlignmentConfig, ModelConfig)
"""the dataclasses of the settings"""


class SftParser(TrlParser):
    """Parse ScriptArguments, MutualAlignmentConfig and ModelConfig, from options and from the file of `--config`."""

    def __init__(self) -> None:
        super().__init__(KINDS, prog="main-align sft")
        # its type is `str | bool`, of which the parser takes the bool alone
        self._option_string_actions["--include_num_input_tokens_seen"].type = _counted_tokens

    def parse(self, arguments: Sequence[str]) -> tuple[Any, Any, Any]:
        """Parse options.

        Args:
            arguments: the options. Those of the file of `--config` are defaults for the others.

        Returns:
            The ScriptArguments, the MutualAlignmentConfig and the ModelConfig.

        Raises:
            UserError: an option does not exist or has no such value, or the file cannot be read.
        """
        words = [part for each in arguments for part in _words(each)]
        if words[-1:] == ["--config"]:
            self.error("argument --config: expected one argument")
        try:
            *parsed, rest = self.parse_args_and_config(words, return_remaining_strings=True)
        except yaml.YAMLError as error:
            raise UserError(f"the settings file is not YAML: {' '.join(str(error).split())}") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{error.doc!r} is not JSON: {error}") from error
        except (ValueError, FileNotFoundError) as error:
            raise UserError(str(error)) from error
        if rest:
            self.error("; ".join(map(self._unknown, [each for each in rest if each.startswith("-")] or rest)))
        script, training, model = parsed
        for name, value in vars(training).items():
            if name.endswith("_kwargs") and isinstance(value, str):
                raise UserError(f"{name} must be a table in JSON, such as '{{\"name\": 1}}', got {value!r}")
        return script, training, model

    def set_defaults_with_config(self, **settings: Any) -> list[str]:
        """Take the settings of a file. Their types are checked as those of options are, which TRL leaves out.

        Args:
            settings: settings by name.

        Returns:
            Those that no option takes, as options.

        Raises:
            UserError: a setting has the wrong type.
        """
        return super().set_defaults_with_config(**{name: self._typed(name, settings[name]) for name in settings})

    def _typed(self, name: str, value: Any) -> Any:
        """Return a value that has the setting's type, or text, which argparse converts to it."""
        for kind in KINDS:
            try:
                check_types(kind, {name: value})
            except UserTypeError:
                if isinstance(value, (bool, int, float)):
                    return str(value)
                if not isinstance(value, str):
                    raise
        return value

    def error(self, message: str) -> NoReturn:
        """Raise the error of an option, for which argparse prints the usage of some hundred options.

        Args:
            message: what is wrong.
        """
        raise UserError(f"{message} (`{self.prog} --options` lists the options)")

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        close = get_close_matches(name, self._option_string_actions, 1)
        return f"no such option: {name}" + (f", did you mean {close[0]}?" if close else "")


def _words(argument: str) -> tuple[str, ...]:
    """Return `--config=FILE` as two words, as TRL's parser reads it."""
    name, equals, file = argument.partition("=")
    return (name, file) if equals and name == "--config" else (argument,)


def _counted_tokens(text: str) -> str | bool:
    """Parse a value of include_num_input_tokens_seen."""
    return text if text in ("all", "non_padding") else string_to_bool(text)
