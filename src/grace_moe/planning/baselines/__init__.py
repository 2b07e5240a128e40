"""The methods that GRACE is measured against, one a file."""
