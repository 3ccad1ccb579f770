#!/bin/sh
# Builds the example into a folder: examples/go/build.sh OUT makes OUT/treadle-example.
#
# It takes gRPC and Protocol Buffers from Debian's packages, without a network:
#   apt-get install golang-go golang-google-grpc-dev golang-google-protobuf-dev \
#       golang-google-genproto-dev protobuf-compiler protoc-gen-go-1-5 protoc-gen-go-grpc
# Elsewhere, generate the code in the same way, and `go build` takes them from go.mod.
#
# Exit code 77: a tool is missing, and standard output names it.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:?give the folder to build in}"
out=$(cd "$1" && pwd)
packages=/usr/share/gocode

for tool in go protoc protoc-gen-go protoc-gen-go-grpc; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed"; exit 77; }
done
for package in grpc protobuf genproto; do
    [ -d "$packages/src/google.golang.org/$package" ] || {
        echo "golang-google-$package-dev is not installed"
        exit 77
    }
done

source=$out/gopath/src/treadle.example
mkdir -p "$source"
cp "$root/examples/go/main.go" "$source"
protoc "-I$root/proto" \
    "--go_out=$out/gopath/src" --go_opt=Mtreadle/v1/sequence.proto=treadle.example/treadlev1 \
    "--go-grpc_out=$out/gopath/src" \
    --go-grpc_opt=Mtreadle/v1/sequence.proto=treadle.example/treadlev1 \
    treadle/v1/sequence.proto
cd "$source"
GO111MODULE=off GOFLAGS='' GOPATH="$out/gopath:$packages" \
    GOCACHE="${GOCACHE:-$root/build/cache/go}" CGO_ENABLED=0 go build -o "$out/treadle-example" .
