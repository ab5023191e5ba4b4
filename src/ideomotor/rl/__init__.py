"""Agents that learn by trying: they collect and learn from replay, or plan; in a real world or inside a learned one."""
