"""A model whose experts are placed: loading, expert parallelism, gradients."""
