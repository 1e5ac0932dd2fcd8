"""The built-in backends, one file each, as ``agentwire.spec.backends`` registers them.

A backend's own modules are imported when a model is loaded: an agent's process holds only the
libraries that it needs.
"""
