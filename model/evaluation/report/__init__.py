"""The report on a model: what it memorized, its plots, and the page that shows them."""
