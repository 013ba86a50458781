"""The router: OpenAI-compatible HTTP in, gRPC sessions out; stateless, any number of them."""
