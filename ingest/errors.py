"""The errors of the service, each with what the caller does about it.

IngestError
├── ConfigError       stop, exit 2: the configuration is wrong
├── SchemaError       stop, exit 2: a schema file cannot become a table
├── Unavailable       keep the batch, wait, try again on a new connection
│   ├── NotReady      the same, but a person has to act: the text says what to do
│   ├── TooMuch       the same, with half as much at a time
│   └── Unforeseen    the same; if only single rows fail, these rows are refused
├── Refused           the store will never take one of these rows: bisect
└── ServerError       an embedded server (demo, bench, tests) did not come up
"""


class IngestError(Exception):
    """Base of every error the service raises on purpose."""


class ConfigError(IngestError):
    """Error in the configuration; `problems` lists every problem, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class SchemaError(IngestError):
    """Error in a schema file: it is missing, unreadable, or describes what no table can hold."""


class Unavailable(IngestError):
    """Absence or silence of a server; the same work succeeds later on a new connection."""


class NotReady(Unavailable):
    """State of a server that answers but needs a person to act; the text says what to do."""


class TooMuch(Unavailable):
    """Lack of a resource at the server for the whole batch; the caller halves the batch."""


class Unforeseen(Unavailable):
    """An unforeseen error, for example from an operator's trigger, a policy or a damaged index.

    It is treated like `Unavailable`, so that no data is lost. If other rows of the batch can be
    stored, a row that fails alone is refused.
    """


class Refused(IngestError):
    """Final refusal: the store will never accept what it was given.

    The text names the SQLSTATE or driver error, never a value.
    """


class ServerError(IngestError):
    """Failure to start a server that a tool runs for itself."""
