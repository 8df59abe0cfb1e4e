"""Scorer what /metrics says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def scraped(text: str) -> dict[str, float]:
    """Each sample by its name, with its labels as they are written out."""
    result = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sample.labels.items())
            result[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return result
