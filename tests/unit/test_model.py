from __future__ import annotations

from ingest.model import Reason


def test_reasons_are_the_contracts() -> None:
    listed = (
        "too_large bad_topic unknown_stream bad_encoding bad_json bad_envelope bad_timestamp "
        "too_old clock_ahead schema refused_by_store internal_error"
    )
    assert [reason.value for reason in Reason] == listed.split()
