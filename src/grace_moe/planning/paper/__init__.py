"""The paper's steps (arXiv 2509.25041), each to the letter."""
