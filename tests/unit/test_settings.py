from __future__ import annotations

import re
from pathlib import Path

from ingest.commands.settings import page, settings
from ingest.config import PREFIX, Settings

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == page(), "run make docs"


def test_every_setting_says_what_it_may_be_and_what_it_is() -> None:
    rows = {row["setting"]: row for row in settings()}
    assert list(rows) == [PREFIX + name.upper() for name in Settings.model_fields]
    assert rows["IOV_MQTT_CLIENT"]["values"] == "`auto`, `mqtt5`, `aiomqtt`"
    assert rows["IOV_HTTP_PORT"]["values"] == "≥ 0, ≤ 65,535"
    assert rows["IOV_MQTT_CLIENT_ID"]["values"] == "length ≥ 1, ≤ 128"
    assert rows["IOV_MQTT_CLIENT_ID"]["default"] == "from the host name"
    assert rows["IOV_MQTT_PASSWORD"]["values"] == "secret"
    assert rows["IOV_SCHEMA_DIR"]["values"] == "path"
    assert all(row["values"] and row["what it is"] for row in rows.values())


def test_no_document_names_a_setting_that_does_not_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"\bIOV_[A-Z_]*[A-Z]\b", file.read_text()))
        assert named <= known, file.name
