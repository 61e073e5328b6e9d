"""The errors of the service, named by what the caller does about them.

IngestError
├── ConfigError       stop, exit 2: the configuration is wrong
├── SchemaError       stop, exit 2: a schema file cannot become a table
├── Unavailable       keep the batch, wait, try again on a new connection
│   ├── NotReady      the same, but a person has to act: the text says what to do
│   ├── TooMuch       the same, with half as much at a time
│   └── Unforeseen    the same, unless it is single rows that fail: then those are refused
├── Refused           the store will never take one of these rows: bisect
└── ServerError       an embedded server (demo, bench, tests) did not come up
"""


class IngestError(Exception):
    """Base of every error the service raises on purpose."""


class ConfigError(IngestError):
    """The configuration is wrong; `problems` lists everything that is, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class SchemaError(IngestError):
    """A schema file is missing, unreadable, or says what no table can hold."""


class Unavailable(IngestError):
    """A server is away or silent for now; the same work succeeds later on a new connection."""


class NotReady(Unavailable):
    """The server answers but a person has to act first; the text says what to do."""


class TooMuch(Unavailable):
    """The server has not enough of something for the whole batch: halve it."""


class Unforeseen(Unavailable):
    """An error that nobody foresaw: a trigger of the operator's, a policy, a damaged index.

    It counts as away, so nothing is lost by it. Where other rows of a batch can be stored, what
    fails alone is refused.
    """


class Refused(IngestError):
    """The store will never accept what it was given.

    The text names the SQLSTATE or driver error, never a value.
    """


class ServerError(IngestError):
    """A server that a tool starts for itself could not be started."""
