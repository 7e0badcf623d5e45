"""Compiled traces: the event program of a structure class and the count table derived from it."""

from whatfits.estimator.profile.config_text import (
    CONFIG_MULTIPLE,
    canonical_config,
    config_id,
    kind_of_lengths,
)
from whatfits.estimator.profile.expand import ExpandedEvents, expand, expand_structure
from whatfits.estimator.profile.expressions import SizeExpression, with_derived_symbols
from whatfits.estimator.profile.missing import MissingProfileError, trace_command
from whatfits.estimator.profile.program import EventProgram, ParameterTemplate, ProfileKey, Token
from whatfits.estimator.profile.store import DEFAULT_STACK, load_program, load_table, save_profile
from whatfits.estimator.profile.table import COLUMN_KINDS, CountTable, build_table

__all__ = [
    "COLUMN_KINDS",
    "CONFIG_MULTIPLE",
    "DEFAULT_STACK",
    "CountTable",
    "EventProgram",
    "ExpandedEvents",
    "MissingProfileError",
    "ParameterTemplate",
    "ProfileKey",
    "SizeExpression",
    "Token",
    "build_table",
    "canonical_config",
    "config_id",
    "expand",
    "expand_structure",
    "kind_of_lengths",
    "load_program",
    "load_table",
    "save_profile",
    "trace_command",
    "with_derived_symbols",
]
