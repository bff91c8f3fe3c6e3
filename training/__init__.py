"""Data, tokenizer and training of the bundled model."""
