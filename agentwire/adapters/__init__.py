"""Agents of agentwire inside agent frameworks: one module a framework, each an extra of its own."""
