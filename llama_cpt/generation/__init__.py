"""Text generation: prefill, decode, sampling and chat sessions."""
