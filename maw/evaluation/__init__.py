"""From rankings to metrics, and from metrics to tests of significance."""
