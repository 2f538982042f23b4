"""A run's report as one HTML file."""

import json
from collections.abc import Mapping


def report_page(payload: Mapping) -> str:
    """The page."""
    return f"<pre>{json.dumps(payload)}</pre>"
