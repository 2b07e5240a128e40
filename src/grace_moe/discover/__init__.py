"""What the cluster is: what is declared of it, and what was measured."""
