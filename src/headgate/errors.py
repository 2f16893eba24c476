"""Every error that headgate raises on purpose.

The command line turns any :class:`HeadgateError` into one line on stderr and
exit status 2. A message says what was found and what to do about it.

    HeadgateError
    ├── CheckpointError        the source checkpoint cannot be converted
    │   └── UnsupportedModel   ... because its model_type is not known
    ├── StoreError             the expert store cannot be used
    │   ├── DamagedStore       ... a checksum does not match
    │   └── NewerStore         ... it was written by a newer headgate
    ├── ResourceError          the machine lacks disk, memory or permission
    │   └── BudgetTooSmall     ... the memory budget cannot work
    ├── Unavailable            the engine cannot take another request now
    │   ├── Busy               ... its queue is full
    │   └── ShuttingDown       ... it is being closed
    └── UsageError             an argument is out of range or a file is unusable
        ├── PromptTooLong      ... the prompt does not fit the context
        └── InvalidRequest     ... a field of a client's request is unusable
"""

from __future__ import annotations


class HeadgateError(Exception):
    """Base of all errors raised on purpose."""


class CheckpointError(HeadgateError):
    """The source checkpoint is malformed, incomplete or inconsistent."""


class UnsupportedModel(CheckpointError):
    """The checkpoint's ``model_type`` has no implementation here."""


class StoreError(HeadgateError):
    """The expert store is missing, incomplete or malformed."""


class DamagedStore(StoreError):
    """Bytes of the store do not match their checksum."""


class NewerStore(StoreError):
    """The store's format version is newer than this program."""


class ResourceError(HeadgateError):
    """The machine lacks disk space, memory or permission."""


class BudgetTooSmall(ResourceError):
    """The memory budget cannot hold what must be resident.

    Attributes:
        smallest: the smallest budget that works, in bytes.
    """

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


class Unavailable(HeadgateError):
    """The engine cannot take another request now; later it may."""


class Busy(Unavailable):
    """As many requests are waiting as may wait."""


class ShuttingDown(Unavailable):
    """The engine is being closed and takes no more requests."""


class UsageError(HeadgateError):
    """An argument is out of range, or a file given by the user is unusable."""


class PromptTooLong(UsageError):
    """The prompt has more tokens than the context holds."""


class InvalidRequest(UsageError):
    """A field of a client's request is unusable.

    Attributes:
        field: its name, as a path such as ``messages[0].content``.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
