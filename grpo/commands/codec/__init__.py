"""Codecs, and models with tokens for their codes, made from the command line."""
