"""Models from a hub id, a folder or a GGUF file: loaded, or looked at, to plan for them."""
