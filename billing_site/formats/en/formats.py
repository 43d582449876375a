"""Instants as staff read them: UTC, unambiguous, sortable."""

DATETIME_FORMAT = "Y-m-d H:i:s"
DATE_FORMAT = "Y-m-d"
