"""Benchmarks whose items are generated at a wanted length: RULER, pass keys, needles and facts."""
