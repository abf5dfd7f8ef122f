"""Every error distilbeam raises on purpose.

    DistilbeamError
    +-- SettingsError      a setting is wrong; raised while the pipeline is built where that is possible
    |   +-- UnknownSettingError
    +-- InputError         an input cannot be found, opened or read
    +-- CheckpointError    a model folder is missing, damaged, unsafe or not a DistilBERT
    +-- OutputError        an output folder cannot be written or committed
    |   +-- OutputExistsError
    +-- RejectLimitError   more rows were set aside than ``max_rejects`` allows

A message names the value, what is allowed and the cure. It never holds the text of a document. A setting stands in it
between backticks, by its name or as Python gives it, such as ``raise `max_rejects` or set `if_exists='resume'```: so
the command line can tell it from all else and spell it as an option. Nothing else stands between backticks.
"""

__all__ = [
    "CheckpointError",
    "DistilbeamError",
    "InputError",
    "OutputError",
    "OutputExistsError",
    "RejectLimitError",
    "SettingsError",
    "UnknownSettingError",
]


class DistilbeamError(Exception):
    """Base of all errors raised by distilbeam."""


class SettingsError(DistilbeamError, ValueError):
    """A setting is wrong."""


class UnknownSettingError(SettingsError, TypeError):
    """A setting that a function or transform does not have, or one that is missing."""


class InputError(DistilbeamError):
    """An input cannot be found, opened or read.

    Attributes:
        reason: what is wrong with the file, where the file itself is at fault and not the way to it; else None.
    """

    reason: str | None = None


class CheckpointError(DistilbeamError):
    """A checkpoint is missing, damaged, unsafe or not a DistilBERT."""


class OutputError(DistilbeamError):
    """An output folder cannot be written or committed."""


class OutputExistsError(OutputError):
    """The output folder already holds an output."""


class RejectLimitError(DistilbeamError):
    """More rows were set aside than the job allows."""
