"""Data quality: duplicates, findings, cleaned copies."""
