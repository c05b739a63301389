"""CSV, LaTeX, Markdown and TREC files."""
