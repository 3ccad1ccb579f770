"""A thin client of the Treadle service: grpcio and protobuf only."""
