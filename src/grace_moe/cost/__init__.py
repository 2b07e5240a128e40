"""What a copy of a token, a (token, expert) pair and a wait cost. Import its modules: the command line starts without SciPy."""
