"""Conversion between Python values, sentences and protobuf messages."""
