"""Copies topics into files. It joins no consumer group and writes only the output file."""
