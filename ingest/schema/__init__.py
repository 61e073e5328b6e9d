"""A schema file becomes a validator, a row extractor, a table and a page of documentation."""

from ingest.schema.aside import SetAside
from ingest.schema.catalogue import Catalogue, default_directory, load_catalogue
from ingest.schema.digest import digest_of
from ingest.schema.fault import pointer
from ingest.schema.private import NeverStored
from ingest.schema.rfc3339 import rfc3339
from ingest.schema.siblings import Siblings
from ingest.schema.stream import Stream

__all__ = [
    "Catalogue",
    "NeverStored",
    "SetAside",
    "Siblings",
    "Stream",
    "default_directory",
    "digest_of",
    "load_catalogue",
    "pointer",
    "rfc3339",
]
