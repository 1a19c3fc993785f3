"""Code generated from proto/ by scripts/proto.py; never edited by hand."""
