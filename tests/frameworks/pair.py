"""Paths and texts for the framework tests."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT / "scenarios" / "llama_to_mistral_sst2.yaml"
GOOD = "A moving, funny and beautifully acted film."
BAD = "A dull, clumsy and endless mess without a single idea."
