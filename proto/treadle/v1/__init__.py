"""The wire contract of Treadle, version 1: messages and service stubs generated from the .proto."""
