"""What a job trains, as its request and the corpora say."""

from __future__ import annotations

from dataclasses import replace

from model.text.corpus import TextSizes
from service.jobs.request import JobRequest


def test_a_warm_start_is_fitted_by_the_size_of_its_source() -> None:
    """A larger network reads the text fewer times in the same minutes, so it has less dropout; set sizes come first."""
    request = JobRequest("text", "quick", "always", warm_start=True, settings={"minutes": 5})
    sizes, own = TextSizes([100_000]), request.model_config(65)
    larger = replace(own, n_hidden=4 * own.n_hidden)
    assert request.model_config(65, larger) == larger
    dropout = request.fit(sizes, 65).config.dropout
    assert request.fit(sizes, 65, own).config.dropout == dropout
    assert request.fit(sizes, 65, larger).config.dropout < dropout
    with_size = replace(request, settings={"minutes": 5, "n_hidden": own.n_hidden})
    assert with_size.fit(sizes, 65, larger).config.dropout == dropout
