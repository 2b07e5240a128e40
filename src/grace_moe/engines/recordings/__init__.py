"""What engines and people recorded, read as traces and load profiles."""
