"""A folder in the layout of the Hugging Face hub: weights, configuration, vocabulary, a model card, a loader."""
