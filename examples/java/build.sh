#!/bin/sh
# Builds the example into a folder: examples/java/build.sh OUT makes OUT/treadle-example.
#
# It takes gRPC and Protocol Buffers from Debian's packages, without a network:
#   apt-get install default-jdk-headless libgrpc-java libgoogle-common-protos-java \
#       libgoogle-gson-java libnetty-java libnetty-tcnative-java libperfmark-java \
#       libprotobuf-java protobuf-compiler protobuf-compiler-grpc-java-plugin
# Elsewhere, build.gradle takes them from Maven Central.
#
# Exit code 77: a tool is missing, and standard output names it.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:?give the folder to build in}"
out=$(cd "$1" && pwd)

for tool in java javac protoc grpc_java_plugin; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed"; exit 77; }
done
path=$out/classes
for name in grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite grpc-stub \
    protobuf proto-google-common-protos guava failureaccess gson perfmark-api netty-buffer \
    netty-codec netty-codec-http netty-codec-http2 netty-common netty-handler netty-handler-proxy \
    netty-resolver netty-tcnative netty-transport geronimo-annotation-1.3-spec; do
    jar=/usr/share/java/$name.jar
    if [ -e "$jar" ]; then
        path=$path:$jar
    elif [ "$name" != failureaccess ]; then # a part of guava in Debian
        echo "$jar is not installed"
        exit 77
    fi
done

rm -rf "$out/generated" "$out/classes" "$out/lib"
mkdir -p "$out/generated" "$out/classes" "$out/lib"
# Netty needs OpenSSL for TLS, and looks for it under another name than Debian's.
for library in /usr/lib/*/jni/libnetty-tcnative.so; do
    [ ! -e "$library" ] || cp "$library" "$out/lib/libnetty_tcnative.so"
done
protoc "-I$root/proto" "--java_out=$out/generated" \
    "--plugin=protoc-gen-grpc-java=$(command -v grpc_java_plugin)" \
    "--grpc-java_out=$out/generated" treadle/v1/sequence.proto
find "$out/generated" -name '*.java' > "$out/sources"
# Older generated code calls methods that newer libraries discourage.
javac -nowarn -Xlint:none -proc:none -d "$out/classes" -cp "$path" \
    "@$out/sources" "$root/examples/java/TreadleExample.java"
cat > "$out/treadle-example" <<END
#!/bin/sh
exec java -Djava.library.path='$out/lib' -cp '$path' TreadleExample "\$@"
END
chmod +x "$out/treadle-example"
