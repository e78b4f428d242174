"""What writes text and scores it: transformers in process, vLLM, any OpenAI-compatible server."""
