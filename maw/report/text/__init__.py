"""The text reports: the summary on the console and in benchmark_summary.txt."""
