"""Payloads of dead letters, without anything that must never be stored. Pure.

- Fields that a schema lists (`x-never-stored`) are removed from a sample at any depth.
- A field that is stored as a digest (`x-hash`) is replaced by its digest.
- Data that cannot be searched is replaced by its size and a digest of the whole, unless the
  operator wants it unchanged (`IOV_DEAD_LETTER_UNREADABLE`).
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from ingest.decode import MessageLimits, unpack, values
from ingest.model import Defect, Delivery, KeptAs
from ingest.schema import Catalogue, NeverStored, Stream

Payload = tuple[bytes, KeptAs]
"""Payload of a dead letter, and how much of what was rejected it is."""


class Letters:
    """Maker of the payloads of dead letters."""

    def __init__(
        self, catalogue: Catalogue, limits: MessageLimits, *, keep_unreadable: bool
    ) -> None:
        """Use these limits; `keep_unreadable`: data that cannot be searched is kept unchanged."""
        self._catalogue = catalogue
        self._limits = limits
        self._keep_unreadable = keep_unreadable
        # Data of an unknown stream may hold fields that any of the schemas forbids.
        self._of_all = NeverStored(
            name for stream in catalogue.values() for name in stream.never_stored.names
        )

    def of_sample(self, stream: Stream | None, sample: Any, *, clean: bool = False) -> Payload:
        """Return what is kept of a sample; `stream` is None if no schema describes it.

        `clean` means that what must never be stored is already removed.
        """
        return orjson.dumps(self._kept(stream, sample, clean=clean)), KeptAs.CLEAN

    def of_large_sample(self, stream: Stream, sample: Any) -> Payload:
        """Return what is kept of a sample that is too large to search name by name.

        A search of its text takes a tenth of the time. If it finds no forbidden name, the sample
        is kept whole; otherwise its size and digest are kept (but see `keep_unreadable`).
        """
        text = orjson.dumps(sample)
        if not stream.never_stored.may_be_in(text):
            return text, KeptAs.CLEAN
        return (text, KeptAs.RAW) if self._keep_unreadable else size_and_digest(text)

    def of_message(self, delivery: Delivery, name: str | None) -> Payload:
        """Return what is kept of a message that cannot be split; `name` is its stream's, if known.

        Readable JSON is kept without forbidden fields. A message that cannot be read (no JSON, an
        unknown encoding, a broken frame) may hold anything, so its size and digest are kept (but
        see `keep_unreadable`).
        """
        stream = self._catalogue.get(name or "")
        private = stream.never_stored if stream else self._of_all
        text = self._inflated(delivery)
        if text is not None and not values(text, self._limits.values):
            try:
                document = orjson.loads(text)
                if not private.may_be_in(text):
                    return delivery.payload, KeptAs.CLEAN
                # Parsing and writing again keeps only one value of a name that occurs twice.
                if isinstance(document, list):
                    return orjson.dumps([self._kept(stream, one) for one in document]), KeptAs.CLEAN
                return self.of_sample(stream, document)
            except (TypeError, ValueError, RecursionError):
                pass  # not JSON, or nested too deep
        if self._keep_unreadable or not delivery.payload:
            return delivery.payload, KeptAs.RAW
        return size_and_digest(delivery.payload)

    def _kept(self, stream: Stream | None, sample: Any, *, clean: bool = False) -> Any:
        if stream is None:
            return self._of_all.without(sample)
        return stream.with_digests(sample) if clean else stream.storable(sample)

    def _inflated(self, delivery: Delivery) -> bytes | None:
        """Return what a message says, inflated if it is packed; None if it cannot be read."""
        text = unpack(delivery.payload, delivery.encoding, self._limits)
        return None if isinstance(text, Defect) else text


def size_and_digest(text: bytes) -> Payload:
    """Return the size and digest that replace a text that cannot be searched."""
    told = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    return orjson.dumps(told), KeptAs.DIGEST
