"""OpenAI's API: what clients ask for, how it is answered, and in which forms."""
