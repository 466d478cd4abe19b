"""Training a tiny base model from scratch: tokenizer, vision tower, language model."""
