"""Readers: one small file per dataset format, each translating records into `Sample`s."""
