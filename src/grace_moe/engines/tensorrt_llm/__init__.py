"""TensorRT-LLM: its statistics of loads, and its load balancer's configuration."""
