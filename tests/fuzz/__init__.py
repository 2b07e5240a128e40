"""Readers against damaged and hostile files: `make fuzz`, and a short run of each in every test run."""
