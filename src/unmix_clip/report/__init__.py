"""Pictures of results, and the self-contained HTML report."""
