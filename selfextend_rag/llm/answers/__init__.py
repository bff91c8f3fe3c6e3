"""From prompts to answers: text while the model's worker generates it, and the answer in the end.

There is one way: a prompt is prepared, then run by `TextRunner`, which passes on text as it comes.
A `TextStream` is that run as a job of the model's worker; blocking calls wait for its answer.
"""
