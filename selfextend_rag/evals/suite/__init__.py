"""Runs benchmarks by methods: rows that outlive a crash, a summary, one report."""
