"""The stream, stage by stage."""
