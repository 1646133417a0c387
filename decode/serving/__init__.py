"""An HTTP server of a model in the form of OpenAI's interface, over the batching engine."""
