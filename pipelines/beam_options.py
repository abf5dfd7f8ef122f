"""Options of Apache Beam, in each form in which Python code has them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from distilbeam.transforms.errors import SettingsError, UnknownSettingError

from .options import beam_flags, check_flags, check_names

__all__ = ["as_pipeline_options", "refuse_beam_settings"]

_FORMS = (
    "give a list such as ['--runner=FlinkRunner'], a dict such as {'runner': 'FlinkRunner'}, or PipelineOptions of "
    "Apache Beam"
)


def as_pipeline_options(given: PipelineOptions | Mapping[str, Any] | Sequence[str] | None) -> PipelineOptions:
    """The options of Beam, once their names and values are checked.

    Args:
        given: Beam's own ``PipelineOptions``, which are taken as they are; names with values; or flags as on the
            command line, after a ``"--"`` also those that only a job server knows.

    Raises:
        SettingsError: it is nothing of this kind, or an option is not known or has a wrong value.

    Example:
        >>> as_pipeline_options({"runner": "FlinkRunner"}).get_all_options(drop_default=True)
        {'runner': 'FlinkRunner'}
    """
    if isinstance(given, PipelineOptions):
        return copy.deepcopy(given)  # a job adds to them
    if isinstance(given, Mapping):
        named = _named(given)
        check_names([f"--{name}=" for name in named], set(), _known())
        return check_flags(named)
    if isinstance(given, str | bytes) or not isinstance(given, Iterable | None):
        raise SettingsError(f"`beam_options` must be options of Apache Beam, not {given!r:.80}; {_FORMS}")
    flags = list(given or ())
    for flag in flags:
        if not isinstance(flag, str):
            raise SettingsError(f"`beam_options` has {flag!r:.80} among its flags, which is no text; {_FORMS}")
    cut = flags.index("--") if "--" in flags else len(flags)
    if cut:
        check_names(flags[:cut], set(), _known())
    return check_flags([*flags[:cut], *flags[cut + 1 :]])


def refuse_beam_settings(function: str, names: Iterable[str]) -> None:
    """Raises UnknownSettingError for the first name, given to ``function`` as a setting, that is an option of Beam."""
    for name in names:
        if f"--{name}" in beam_flags():
            raise UnknownSettingError(
                f"{function} has no setting {name!r}, which is an option of Apache Beam; give it in `beam_options`, "
                f"a list of flags or a mapping such as {{{name!r}: ...}}"
            )


def _known() -> set[str]:
    """Options of Beam and of all that has been imported, such as classes of options of the user's own."""
    return beam_flags() | {f"--{name}" for name in PipelineOptions([]).get_all_options()}


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Names with values as Beam takes them; what is None is left out."""
    for name in options:
        if not isinstance(name, str):
            raise SettingsError(f"`beam_options` has {name!r:.80} for the name of an option; {_FORMS}")
    return {
        name.removeprefix("--"): list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None
    }
