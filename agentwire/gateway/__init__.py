"""An OpenAI-compatible HTTP gateway over a runtime (extra ``agentwire[gateway]``)."""
